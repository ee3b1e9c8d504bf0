// What is wrong with the layout of the page at its present width: a list of sentences.
(() => {
  const faults = [];
  const slack = 1.5;  // pixels: glyphs and borders are rounded
  const root = document.documentElement;
  const words = (node) => `"${node.textContent.trim().slice(0, 40)}" in ${node.parentElement.tagName.toLowerCase()}.${
    node.parentElement.getAttribute("class") ?? ""}`;
  if (root.scrollWidth > root.clientWidth) {
    faults.push(`the page is ${root.scrollWidth} wide, the window ${root.clientWidth}`);
  }

  const isScroller = (style) => /auto|scroll/.test(style.overflowX);
  const clips = (style) => /hidden|clip/.test(style.overflowX) || /hidden|clip/.test(style.overflowY);
  for (const box of document.body.querySelectorAll("*")) {
    if (box.closest("svg") && box.tagName !== "svg") continue;
    const style = getComputedStyle(box), name = `${box.tagName.toLowerCase()}.${box.getAttribute("class") ?? ""}`;
    const wide = box.scrollWidth > box.clientWidth + 1, high = box.scrollHeight > box.clientHeight + 1;
    if (clips(style) && box.clientWidth && (wide || high)) {
      const [inside, outside] = [[box.scrollWidth, box.scrollHeight], [box.clientWidth, box.clientHeight]];
      faults.push(`${name} hides ${inside.join(" x ")} in ${outside.join(" x ")}: ${box.textContent.slice(0, 40)}`);
    }
    if (isScroller(style) && wide) {
      const hint = box.parentElement.querySelector(".hint");
      if (!hint || !hint.getClientRects().length) faults.push(`${name} scrolls without a hint`);
      if (box.tabIndex < 0) faults.push(`${name} cannot be scrolled by keyboard`);
    }
    if (style.textOverflow === "ellipsis" && wide) faults.push(`${name} ends in an ellipsis`);
  }

  // every line of text, as rectangles
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const holder = node.parentElement;
    if (!node.textContent.trim() || /^(script|style|noscript)$/i.test(holder.tagName)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = holder.closest("svg") ? [holder.getBoundingClientRect()] : [...range.getClientRects()];
    let scroller = holder;
    while (scroller && !isScroller(getComputedStyle(scroller))) scroller = scroller.parentElement;
    const seen = boxes.filter((box) => box.width > 0.5 && box.height > 0.5);
    texts.push(...seen.map((box) => ({node, box, scroller, over: holder.closest(".tip")})));
  }
  for (const {node, box, scroller} of texts) {
    const gone = box.left < -slack || box.right > innerWidth + slack;
    if (!scroller && gone) faults.push(`${words(node)} leaves the page`);
    const frame = node.parentElement.closest("svg, td, th, button, .chip, .card, .tip");
    if (!frame) continue;
    const edge = frame.getBoundingClientRect();
    const beside = box.left < edge.left - slack || box.right > edge.right + slack;
    const above = box.top < edge.top - 2 * slack || box.bottom > edge.bottom + 2 * slack;
    if (beside || above) faults.push(`${words(node)} leaves its ${frame.tagName.toLowerCase()}`);
  }
  // a pointer's tip may lie over a chart, a table's first column over what is scrolled
  const flat = texts.filter(({node, over}) => !over && !node.parentElement.closest(".sticky"));
  flat.sort((a, b) => a.box.top - b.box.top);
  for (let i = 0; i < flat.length; i++) {
    for (let j = i + 1; j < flat.length && flat[j].box.top < flat[i].box.bottom; j++) {
      const [a, b] = [flat[i].box, flat[j].box];
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      const hidden = flat[i].scroller !== flat[j].scroller;  // scrolled out of sight, beside or under nothing
      if (!hidden && across > slack && down > 3) faults.push(`${words(flat[i].node)} overlaps ${words(flat[j].node)}`);
    }
  }
  return [...new Set(faults)].slice(0, 20);
})()
