import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import test from "ava";

interface Stored {
  exitCode: number;
  output: string;
  request: { url: string; authorization: string; body: unknown };
}

/** Runs the chart's hook script against a stand-in for the Kubernetes API that answers with `status`. */
async function storeKeys(status: number): Promise<Stored> {
  const folder = mkdtempSync(join(tmpdir(), "shoal-keys-"));
  writeFileSync(join(folder, "token"), "letmein\n");
  let request = { url: "", authorization: "", body: undefined as unknown };
  const server = createServer((incoming, outgoing) => {
    void text(incoming).then((body) => {
      const { url = "", headers } = incoming;
      request = { url, authorization: headers.authorization ?? "", body: JSON.parse(body) as unknown };
      outgoing.writeHead(status).end("because");
    });
  });
  try {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const place = { ACCOUNT_DIR: folder, KUBERNETES_URL: `http://127.0.0.1:${port}` };
    const child = spawn(process.execPath, ["charts/shoal/files/store-keys.mjs", folder], {
      env: { ...process.env, ...place, SECRET_NAME: "fleet-keys", SECRET_NAMESPACE: "sea" },
    });
    const [out, err, [exitCode]] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      once(child, "close") as Promise<[number]>,
    ]);
    return { exitCode, output: out + err, request };
  } finally {
    server.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

test("the hook stores every file of the folder in a new secret that outlives the release", async (t) => {
  const { exitCode, output, request } = await storeKeys(201);
  t.is(exitCode, 0);
  t.regex(output, /fleet-keys created/);
  t.is(request.url, "/api/v1/namespaces/sea/secrets");
  t.is(request.authorization, "Bearer letmein");
  t.like(request.body, {
    kind: "Secret",
    metadata: { name: "fleet-keys", annotations: { "helm.sh/resource-policy": "keep" } },
    data: { token: Buffer.from("letmein\n").toString("base64") },
  });
});

test("keys that are in use are left as they are", async (t) => {
  const { exitCode, output } = await storeKeys(409);
  t.is(exitCode, 0);
  t.regex(output, /left as it is/);
});

test("a refusal of the API fails the hook with its reason", async (t) => {
  const { exitCode, output } = await storeKeys(403);
  t.is(exitCode, 1);
  t.regex(output, /403 because/);
});
