// A button on each block of code that copies it. Blocks of output ("text") have none.
document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return; // not in a secure context
  const blocks = "div[class*='highlight-']:not(.highlight-text) > .highlight";
  for (const block of document.querySelectorAll(blocks)) {
    const button = document.createElement("button");
    button.className = "copy-code";
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("pre").textContent.trimEnd());
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }
});
