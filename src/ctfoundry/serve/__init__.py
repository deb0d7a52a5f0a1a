"""The web app: the indexed scans, and the same place in each of them.

`memory` what is kept, `picture` a scan as the page draws it, `library` which scans there are, `work` what the network does,
`jobs` one such thing at a time, `uploads` files from the page, `guard` who may ask, `app` the addresses, `web/` the page.
"""
