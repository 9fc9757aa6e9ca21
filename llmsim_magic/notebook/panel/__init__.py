"""The panel: dropdowns, sliders and tabs over every view."""
