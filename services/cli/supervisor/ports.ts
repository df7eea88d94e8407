import { createServer } from "node:net";
import { HOST } from "./units.js";

/** Listens for a moment; the port that was given, or undefined if it is taken. */
function probe(port: number, host = HOST): Promise<number | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(undefined));
    server.listen({ host, port, exclusive: true }, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : undefined));
    });
  });
}

/** Whether nobody listens on this port of the loopback address and of `host`. */
export async function isPortFree(port: number, host = HOST): Promise<boolean> {
  return (await probe(port)) !== undefined && (host === HOST || (await probe(port, host)) !== undefined);
}

/** A free port of the loopback address, chosen by the system. */
export async function drawPort(): Promise<number> {
  const port = await probe(0);
  if (port === undefined) throw new Error("the system has no free port on 127.0.0.1");
  return port;
}
