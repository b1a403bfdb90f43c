"""A page on which one takes groups of training data away, and sees what changes (`ddm explore`).

view      what it shows of a finished run: JSON values, pictures, and answers
server    who may ask, and in which order; needs the extra `explore`
page/     the page itself: one HTML file, one style, and plain modules
"""
