"""A page on which one takes groups of training data away, and sees what changes (`ddm explore`).

view      what it shows of a finished run: JSON values, pictures, and answers
cleaning  training points that look wrong, and networks without them
server    how it is answered, in turn; `requests` says whom, and reads what they ask
page/     the page itself: one HTML file, one style, and plain modules
"""

from importlib.util import find_spec

if any(find_spec(name) is None for name in ("starlette", "uvicorn")):
    raise ValueError("the page needs starlette and uvicorn: python -m pip install '.[explore]'")
