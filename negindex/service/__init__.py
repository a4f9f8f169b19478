"""The service: sets of negatives asked over HTTP. What runs it is ``negindex.service.run``; the client is
``negindex.RemoteNegatives``.
"""
