// Puts the files of a folder into a new Secret. A Secret that exists is left as it is: its keys are in use.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const folder = process.argv[2] ?? "/keys";
const account = process.env.ACCOUNT_DIR ?? "/var/run/secrets/kubernetes.io/serviceaccount";
const { SECRET_NAME: name, SECRET_NAMESPACE: namespace } = process.env;
const server =
  process.env.KUBERNETES_URL ?? `https://${process.env.KUBERNETES_SERVICE_HOST}:${process.env.KUBERNETES_SERVICE_PORT}`;

const files = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile());
const data = Object.fromEntries(
  files.map(({ name: file }) => [file, readFileSync(join(folder, file)).toString("base64")]),
);
const response = await fetch(`${server}/api/v1/namespaces/${namespace}/secrets`, {
  method: "POST",
  headers: {
    authorization: `Bearer ${readFileSync(join(account, "token"), "utf8").trim()}`,
    "content-type": "application/json",
  },
  body: JSON.stringify({
    apiVersion: "v1",
    kind: "Secret",
    metadata: { name, namespace, annotations: { "helm.sh/resource-policy": "keep" } },
    type: "Opaque",
    data,
  }),
});
if (response.status === 409) console.log(`secret ${name} exists; left as it is`);
else if (response.ok) console.log(`secret ${name} created`);
else {
  console.error(`secret ${name}: ${response.status} ${await response.text()}`);
  process.exitCode = 1;
}
