"""`hospital predict`: what a trained model says of images that lie here. Nothing of it leaves."""

NOTICE = "For research use only; not a medical device; not for diagnosis or treatment."
