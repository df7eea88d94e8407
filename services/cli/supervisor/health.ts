import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** How a unit shows that it is ready. */
export type Health =
  | { readonly kind: "http"; readonly url: string }
  /** Sends `send` after connecting and expects a line that begins with `expect`. */
  | {
      readonly kind: "tcp";
      readonly host: string;
      readonly port: number;
      readonly send: string;
      readonly expect: string;
    };

const TRY_MS = 1000;
const PAUSE_MS = 50;

async function httpReady(url: string): Promise<boolean> {
  try {
    return (await fetch(url, { signal: AbortSignal.timeout(TRY_MS) })).ok;
  } catch {
    return false;
  }
}

function tcpReady(host: string, port: number, send: string, expect: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: TRY_MS });
    let text = "";
    const end = (ready: boolean): void => {
      socket.destroy();
      resolve(ready);
    };
    socket.on("connect", () => void socket.write(send));
    socket.on("data", (data) => {
      text += data.toString("latin1");
      if (text.length >= expect.length) end(text.startsWith(expect));
    });
    socket.on("timeout", () => end(false));
    socket.on("error", () => end(false));
    socket.on("close", () => end(false));
  });
}

/** Asks once. */
export function isReady(health: Health): Promise<boolean> {
  return health.kind === "http"
    ? httpReady(health.url)
    : tcpReady(health.host, health.port, health.send, health.expect);
}

/** Waits until the unit is ready; false if the time is up or the signal aborts first. */
export async function waitReady(health: Health, withinMs: number, signal: AbortSignal): Promise<boolean> {
  const endMs = Date.now() + withinMs;
  while (!signal.aborted && Date.now() < endMs) {
    if (await isReady(health)) return true;
    await sleep(PAUSE_MS);
  }
  return false;
}
