"""What is known of the log of Amazon Toys, without reading it."""

from slmrec.auto.facts import Facts

TOYS = Facts(19_412, 11_924, 167_597, 109_000, 21, 0.0, 1.0, 0.99, 6.0)
