"""Scripts that find what a reader could not read: cut texts, scroll bars, low contrast."""

from typing import Any

_VISIBLE = """
const isSeen = (e) => e.checkVisibility({opacityProperty: true, visibilityProperty: true})
  && e.getBoundingClientRect().width > 0;
"""
_LAYOUT = (
    "(panel) => {"
    + _VISIBLE
    + """
  const faults = [];
  const right = panel.getBoundingClientRect().right + 1;
  const pen = document.createElement('canvas').getContext('2d');
  const name = (e) => e.labels?.[0]?.textContent || e.textContent.trim().slice(0, 40)
    || e.className;
  const all = (selector) => [...panel.querySelectorAll(selector)].filter(isSeen);
  for (const e of all('.widget-label, .lm-TabBar-tabLabel, button')) {
    if (e.scrollWidth > e.clientWidth + 1) faults.push(`text cut: ${name(e)}`);
  }
  for (const e of all('input, select, button, .lm-TabBar-tab, .widget-label')) {
    const box = e.getBoundingClientRect();
    if (box.right > right) faults.push(`beyond the panel: ${name(e)}`);
    const hit = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    if (hit && panel.contains(hit) && !e.contains(hit) && !hit.contains(e)) {
      faults.push(`${name(e)} lies below ${name(hit)}`);
    }
  }
  for (const e of all('select')) {
    const style = getComputedStyle(e);
    pen.font = style.font;
    const room = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const text = e.selectedOptions[0]?.textContent ?? '';
    if (pen.measureText(text).width > room + 1) faults.push(`option cut: ${text}`);
  }
  for (const e of all('.llmsim-size input')) {
    if (e.scrollWidth > e.clientWidth) faults.push(`number cut: ${e.value}`);
  }
  for (const e of all('.llmsim-controls, .llmsim-row, :is(.llmsim-controls, .llmsim-row) *')) {
    const style = getComputedStyle(e);
    const scrolls = (way) => ['auto', 'scroll'].includes(way);
    if (e.scrollWidth > e.clientWidth + 1 && scrolls(style.overflowX)
        || e.scrollHeight > e.clientHeight + 1 && scrolls(style.overflowY)) {
      faults.push(`scroll bar: ${name(e)}`);
    }
  }
  return faults;
}"""
)
_CONTRAST = (
    "(panel) => {"
    + _VISIBLE
    + """
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
  const ground = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      const shadow = style.boxShadow.match(/^(rgba?[(][^)]*[)]).* 9999px inset/);
      if (shadow) layers.push(rgba(shadow[1]));  // which colours the selected rows of a table
      layers.push(rgba(style.backgroundColor));
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faults = new Set();
  const check = (e, style, text) => {
    let opacity = style.opacity === undefined ? 1 : parseFloat(style.opacity);
    for (let at = e; at && style !== getComputedStyle(at); at = at.parentElement) {
      opacity *= parseFloat(getComputedStyle(at).opacity);
    }
    const [r, g, b, a] = rgba(style.color), below = ground(e);
    const above = over([r, g, b, a * opacity], below);
    const [light, dark] = [luminance(above), luminance(below)].sort((x, y) => y - x);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) faults.add(`${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  };
  for (const e of panel.querySelectorAll('*')) {
    if (e.closest('svg, style, :disabled, .disabled') || !isSeen(e)) continue;
    const texts = [...e.childNodes].filter((node) => node.nodeType === 3);
    const own = texts.map((node) => node.data.trim()).join('');
    const style = getComputedStyle(e);
    if (own && e.tagName !== 'OPTION') check(e, {color: style.color}, own);
    if (e.tagName === 'SELECT' || e.value) check(e, {color: style.color}, String(e.value));
    if (e.placeholder) check(e, getComputedStyle(e, '::placeholder'), e.placeholder);
  }
  return [...faults];
}"""
)


def layout_faults(panel: Any) -> list[str]:
    """Controls that are cut, overlap, or have a scroll bar, of a locator of the panel."""
    return list(panel.evaluate(_LAYOUT))


def low_contrasts(panel: Any) -> list[str]:
    """Texts, values and placeholders with a contrast below 4.5:1 (WCAG 2, 1.4.3)."""
    return list(panel.evaluate(_CONTRAST))
