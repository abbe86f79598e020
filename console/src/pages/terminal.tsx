// A shell, in a terminal by xterm. Loaded when it is opened.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import { useEffect, useRef } from "preact/hooks";
import { T } from "../texts";

export function Shell({
  address,
  closed,
}: {
  address: string;
  closed: (reason: string) => void;
}) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const terminal = new Terminal({
      cursorBlink: true,
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
      fontSize: 14,
      scrollback: 5000,
      screenReaderMode: true,
      theme: { background: "#14171b", foreground: "#e4e8ee" },
    });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    terminal.open(box.current as HTMLElement);
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    const size = (): void => {
      fit.fit();
      if (socket.readyState === WebSocket.OPEN)
        socket.send(JSON.stringify({ type: "resize", cols: terminal.cols, rows: terminal.rows }));
    };
    // Tab is the shell's. With Shift it is the browser's: who has no mouse gets out of here.
    terminal.attachCustomKeyEventHandler(({ key, shiftKey }) => key !== "Tab" || !shiftKey);
    const coder = new TextEncoder();
    // In binary frames: a text frame could be taken for a change of the size.
    terminal.onData((data) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(coder.encode(data));
    });
    socket.onopen = () => {
      size();
      terminal.focus();
    };
    socket.onmessage = ({ data }: MessageEvent<ArrayBuffer>) =>
      terminal.write(new Uint8Array(data));
    socket.onclose = ({ reason }) => closed(reason);
    const watch = new ResizeObserver(size);
    watch.observe(box.current as HTMLElement);
    return () => {
      watch.disconnect();
      socket.onclose = null;
      socket.close();
      terminal.dispose();
    };
  }, [address]);
  return (
    <>
      <div class="shell-box" ref={box} role="group" aria-label={T.containers.terminal} />
      <p class="hint">{T.containers.leave}</p>
    </>
  );
}
