// Search on pages opened from disk: browsers refuse workers from file://, so the worker's script runs
// in a hidden frame. Zensical would load such a shim from unpkg.com; this one needs no network.
if (location.protocol === "file:")
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      this.inside = this.frame.contentWindow;
      this.inside.postMessage = data => this.onmessage?.({data: structuredClone(data)});
      const script = this.inside.document.createElement("script");
      script.src = new URL(url, document.baseURI);
      this.loaded = new Promise(resolve => { script.onload = resolve; });
      this.inside.document.body.append(script);
    }
    postMessage(message) {
      const data = structuredClone(message);
      this.loaded.then(() => this.inside.dispatchEvent(new MessageEvent("message", {data})));
    }
    terminate() {
      this.frame.remove();
    }
  };
