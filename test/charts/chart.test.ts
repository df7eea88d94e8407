import test from "ava";
import { lintChart, renderChart, type Manifest } from "./helm.js";

interface Container {
  name: string;
  image: string;
  args: string[];
  env?: { name: string; value?: string }[];
  ports?: { name: string; containerPort: number }[];
  resources: { requests: Record<string, unknown>; limits: Record<string, unknown> };
  securityContext: Record<string, unknown>;
  startupProbe?: { httpGet: { path: string; port: string } };
  livenessProbe?: { httpGet?: { path: string; port: string } };
  readinessProbe?: { httpGet?: { path: string; port: string } };
}

interface PodSpec {
  automountServiceAccountToken?: boolean;
  securityContext: Record<string, unknown>;
  containers: Container[];
  initContainers?: Container[];
  volumes: { name: string; secret?: { secretName: string; items?: { key: string }[] } }[];
}

const SERVICES = ["registry", "scheduler", "aggregator", "telemetry"];

const agent = { enabled: true, joinTokenSecret: "join", datasets: { notes: "/srv/notes" } };
const existing = {
  keys: { existingSecret: "mine" },
  nats: { enabled: false, url: "tls://nats.example.org:4222" },
  redis: { enabled: false, url: "rediss://redis.example.org:6380" },
};

/** Combinations that people install. */
const combinations: [name: string, values: object][] = [
  ["defaults", {}],
  ["existing NATS, Redis and keys", existing],
  ["agents on the nodes", { agent: { ...agent, policy: { purposes: ["research"], hours: "22:00-06:00" } } }],
  ["agents without a policy", { ...existing, agent }],
  ["Prometheus operator", { serviceMonitor: { enabled: true, labels: { release: "prometheus" } } }],
  [
    "everything placed and exposed",
    {
      image: { repository: "registry.example.org/shoal", tag: "1.2.3", pullSecrets: ["pull"] },
      nodeSelector: { disk: "ssd" },
      tolerations: [{ key: "train", operator: "Exists" }],
      affinity: { nodeAffinity: {} },
      podAnnotations: { team: "sea" },
      env: { SHOAL_HEARTBEAT_MS: "2000" },
      publicNatsUrls: ["tls://fleet.example.org:4222"],
      nats: {
        storage: { size: "50Gi", className: "fast" },
        service: { type: "LoadBalancer", annotations: { a: "b" } },
      },
      services: { aggregator: { replicas: 1 } },
      agent: { ...agent, nodeSelector: { role: "gateway" }, tolerations: [{ operator: "Exists" }] },
    },
  ],
];

function render(values: object, release?: string): Manifest[] {
  const rendered = renderChart(values, release);
  if (!rendered.ok) throw new Error(rendered.message);
  return rendered.manifests;
}

const named = (manifests: Manifest[], kind: string, name: string): Manifest => {
  const found = manifests.find((manifest) => manifest.kind === kind && manifest.metadata.name === name);
  if (found === undefined) throw new Error(`no ${kind} ${name}`);
  return found;
};

const podOf = (manifest: Manifest): PodSpec => (manifest.spec as { template: { spec: PodSpec } }).template.spec;
const workloads = (manifests: Manifest[]): Manifest[] =>
  manifests.filter(({ kind }) => ["Deployment", "StatefulSet", "DaemonSet", "Job"].includes(kind));

for (const [name, values] of combinations) {
  test(`${name}: helm lints it`, (t) => {
    t.regex(lintChart(values), /0 chart\(s\) failed/);
  });

  test(`${name}: no two objects share a kind and a name, and every selector finds its pods`, (t) => {
    const manifests = render(values);
    const ids = manifests.map(({ kind, metadata }) => `${kind}/${metadata.name}`);
    t.deepEqual([...new Set(ids)], ids);
    for (const manifest of workloads(manifests).filter(({ kind }) => kind !== "Job")) {
      const { selector, template } = manifest.spec as {
        selector: { matchLabels: Record<string, string> };
        template: { metadata: { labels: Record<string, string> } };
      };
      t.like(template.metadata.labels, selector.matchLabels, manifest.metadata.name);
    }
  });

  test(`${name}: every container is bounded, non-root and cannot write its own root`, (t) => {
    for (const manifest of workloads(render(values))) {
      const pod = podOf(manifest);
      t.true(pod.securityContext["runAsNonRoot"], manifest.metadata.name);
      for (const container of [...pod.containers, ...(pod.initContainers ?? [])]) {
        t.like(container.securityContext, {
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ["ALL"] },
        });
        t.truthy(container.resources.requests["cpu"], container.name);
        t.truthy(container.resources.requests["memory"], container.name);
        t.truthy(container.resources.limits["memory"], container.name);
      }
    }
  });
}

test("each service has two replicas, probes on its metrics port, a Service and a disruption budget", (t) => {
  const manifests = render({});
  for (const service of SERVICES) {
    const deployment = named(manifests, "Deployment", `fleet-shoal-${service}`);
    t.is(deployment.spec["replicas"], 2);
    const [container] = podOf(deployment).containers;
    t.deepEqual(container?.args, [`dist/services/${service}/main.js`]);
    t.deepEqual(container?.livenessProbe?.httpGet, { path: "/healthz", port: "metrics" });
    t.deepEqual(container?.readinessProbe?.httpGet, { path: "/readyz", port: "metrics" });
    t.deepEqual(container?.ports, [
      { name: "grpc", containerPort: 50051 },
      { name: "metrics", containerPort: 9464 },
    ]);
    t.truthy(named(manifests, "Service", `fleet-shoal-${service}`));
    t.truthy(named(manifests, "PodDisruptionBudget", `fleet-shoal-${service}`));
  }
});

test("NATS holds its heap down at four fifths of its memory's limit, however that is written", (t) => {
  const limits: [memory: string | number, heapBytes: string][] = [
    ["1Gi", "858993459"],
    ["1500Mi", "1258291200"],
    ["1024Ki", "838860"],
    ["2G", "1600000000"],
    ["500M", "400000000"],
    ["1000000", "800000"],
  ];
  const heapOf = (values: object): string | undefined => {
    const [container] = podOf(named(render(values), "StatefulSet", "fleet-shoal-nats")).containers;
    return container?.env?.find(({ name }) => name === "GOMEMLIMIT")?.value;
  };
  t.is(heapOf({}), "1717986918");
  for (const [memory, heapBytes] of limits) t.is(heapOf({ nats: { resources: { limits: { memory } } } }), heapBytes);
  const refused = renderChart({ nats: { resources: { limits: { memory: "1.5Gi" } } } });
  t.true(!refused.ok && refused.message.includes("nats.resources.limits.memory"));
});

test("a single replica has no disruption budget, which could only stop the node's drain", (t) => {
  const manifests = render({ services: { aggregator: { replicas: 1 } } });
  t.throws(() => named(manifests, "PodDisruptionBudget", "fleet-shoal-aggregator"));
  t.truthy(named(manifests, "PodDisruptionBudget", "fleet-shoal-registry"));
});

test("only the registry sees the trust root", (t) => {
  const manifests = render({});
  for (const service of [...SERVICES, "nats"]) {
    const kind = service === "nats" ? "StatefulSet" : "Deployment";
    const { volumes } = podOf(named(manifests, kind, `fleet-shoal-${service}`));
    const keys = volumes.flatMap(({ secret }) => (secret === undefined ? [] : [secret.items?.map(({ key }) => key)]));
    const expected = service === "registry" ? [undefined] : [[service === "nats" ? "nats.conf" : "service.creds"]];
    t.deepEqual(keys, expected, service);
  }
});

test("existing NATS and Redis are used as they are, with the given keys and no hook", (t) => {
  const manifests = render(existing);
  t.deepEqual(
    manifests.filter(({ kind }) => kind === "StatefulSet" || kind === "Job" || kind === "Secret"),
    [],
  );
  const [container] = podOf(named(manifests, "Deployment", "fleet-shoal-scheduler")).containers;
  const env = Object.fromEntries((container?.env ?? []).map(({ name, value }) => [name, value]));
  t.is(env["SHOAL_NATS_URL"], "tls://nats.example.org:4222");
  t.is(env["SHOAL_REDIS_URL"], "rediss://redis.example.org:6380");
});

test("the keys are made before anything else, and their account may do nothing more", (t) => {
  const manifests = render({});
  t.is(named(manifests, "Job", "fleet-shoal-keys").metadata.annotations?.["helm.sh/hook"], "pre-install,pre-upgrade");
  const role = named(manifests, "Role", "fleet-shoal-keys") as unknown as {
    rules: { verbs: string[]; resources: string[] }[];
  };
  t.deepEqual(
    role.rules.map(({ verbs, resources }) => [resources.join(), verbs.join()]),
    [
      ["secrets", "create"],
      ["secrets", "get"],
    ],
  );
});

test("an agent runs on every node with read-only data and the device's policy", (t) => {
  const values = { agent: { ...agent, threads: 3, policy: { minCohort: 4 } } };
  const manifests = render(values);
  const pod = podOf(named(manifests, "DaemonSet", "fleet-shoal-agent"));
  const [container] = pod.containers;
  t.true(container?.args.includes("--dataset=notes=/data/notes"));
  t.true(container?.args.includes("--threads=3"));
  t.true(container?.args.includes("--policy=/etc/shoal/policy.yaml"));
  t.false(pod.automountServiceAccountToken);
  const policy = named(manifests, "ConfigMap", "fleet-shoal-agent") as unknown as { data: Record<string, string> };
  t.is(policy.data["policy.yaml"]?.trim(), "minCohort: 4");
});

test("a release called shoal does not stutter", (t) => {
  t.truthy(named(render({}, "shoal"), "Deployment", "shoal-registry"));
});

const refusals: [name: string, values: object, message: RegExp][] = [
  ["an unknown value", { replica: 3 }, /additional properties 'replica' not allowed/],
  ["an unknown service", { services: { operator: { replicas: 1 } } }, /'operator' not allowed/],
  ["no replicas", { services: { registry: { replicas: 0 } } }, /\/services\/registry\/replicas': minimum/],
  ["a text for a number", { services: { registry: { replicas: "2" } } }, /got string, want integer/],
  [
    "a quantity that is none",
    { services: { registry: { resources: { limits: { memory: "lots" } } } } },
    /does not match pattern/,
  ],
  ["existing NATS without a URL", { keys: { existingSecret: "k" }, nats: { enabled: false } }, /\/nats\/url/],
  ["existing NATS without its keys", { nats: { enabled: false, url: "nats://n:4222" } }, /\/keys\/existingSecret/],
  ["existing Redis without a URL", { redis: { enabled: false } }, /\/redis\/url/],
  ["agents without a token", { agent: { enabled: true, datasets: { a: "/a" } } }, /\/agent\/joinTokenSecret/],
  ["agents without data", { agent: { enabled: true, joinTokenSecret: "j" } }, /\/agent\/datasets': minProperties/],
  ["a misspelt policy", { agent: { ...agent, policy: { purpose: ["x"] } } }, /'purpose' not allowed/],
  ["a public address without a scheme", { publicNatsUrls: ["fleet.example.org"] }, /\/publicNatsUrls\/0/],
  ["a loud log", { logLevel: "loud" }, /\/logLevel/],
  ["a foreign variable", { env: { PATH: "/bin" } }, /invalid propertyName 'PATH'/],
];

for (const [name, values, message] of refusals) {
  test(`values are refused with the place: ${name}`, (t) => {
    const rendered = renderChart(values);
    t.false(rendered.ok);
    t.regex(rendered.ok ? "" : rendered.message, message);
  });
}
