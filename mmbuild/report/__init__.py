"""Pictures and pages of a corpus for people: what is stored is shown as it is, what is missing is shown as missing."""
