"""The human study: which of two pictures matches its caption, which looks real, and which word is hidden (HUMMUS).

A study is one SQLite file with pictures, questions, orders and answers. X-LXMERT, 6.1 and E.2; Unifying Multimodal
Transformer, 5.5.
"""
