"""Weight Normalization (Salimans & Kingma, NIPS 2016), reproduced.

The subject is :mod:`wn.norm`; a run goes from :mod:`wn.train` through :mod:`wn.run` and
:mod:`wn.trainer` into a record (:mod:`wn.records`) and from there into :mod:`wn.report`.
"""
