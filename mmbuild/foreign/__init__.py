"""What exports and imports share: stored samples one by one, and files that are whole or not there.

Which foreign layouts there are is not known here; their folders, ``export`` and ``importers``, are the registries.
"""
