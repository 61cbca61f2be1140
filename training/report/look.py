"""The look of the page. Its tabs need no script, so none may run."""

SCRIPT_FREE_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">"
)
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2530; margin: 1.5rem auto; max-width: 1240px; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; border-bottom: 1px solid #d5dce4; padding-bottom: .2rem; }
.legend { list-style: none; padding: 0; margin: .2rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; }
.swatch { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin-right: .4em; }
.note { color: #5b6875; font-size: .85rem; margin: .2rem 0 .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .18rem 1.1rem .18rem 0; border-bottom: 1px solid #e8edf2; vertical-align: top; }
th { font-weight: 600; }
.grid { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; }
figcaption { font-weight: 600; font-size: .88rem; }
.tabs > input { position: absolute; opacity: 0; }
.tabs > label { display: inline-block; padding: .25rem .9rem; margin: 0 .3rem .6rem 0; border: 1px solid #c3ccd6;
  border-radius: 4px; cursor: pointer; font-size: .9rem; }
.tabs > input:checked + label { background: #1c2530; color: white; border-color: #1c2530; }
.tabs > input:focus-visible + label { outline: 2px solid #1f77b4; }
.tabs > .grid { display: none; }
#x-step:checked ~ .x-step, #x-tokens:checked ~ .x-tokens, #x-time:checked ~ .x-time { display: flex; }
details { margin: .4rem 0; }
summary { cursor: pointer; }
@media print { .tabs > input, .tabs > label { display: none; } }
"""
