// <gfs-style>: what <style> is, without a style element, which the page's policy does not allow.
// xterm makes such elements, and build.mjs has it make these.
class StyleElement extends HTMLElement {
  private readonly sheet = new CSSStyleSheet();
  override get textContent(): string {
    return "";
  }
  override set textContent(text: string) {
    this.sheet.replaceSync(text);
  }
  connectedCallback(): void {
    document.adoptedStyleSheets.push(this.sheet);
  }
  disconnectedCallback(): void {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((each) => each !== this.sheet);
  }
}
customElements.define("gfs-style", StyleElement);
