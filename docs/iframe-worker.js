/* Browsers start no worker on a page that was opened from a file. The search then runs in a hidden frame instead. */
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const tell = (target, data) => target.dispatchEvent(new MessageEvent("message", { data }))
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inner = frame.contentWindow
      inner.postMessage = data => tell(this, data)
      const script = inner.document.createElement("script")
      script.src = url
      const started = new Promise(resolve => (script.onload = resolve))
      inner.document.body.append(script)
      this.postMessage = data => started.then(() => tell(inner, data))
    }
  }
