import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import test from "ava";
import { parse } from "yaml";
import { parseArguments } from "#agent/arguments.js";
import { checkOptions } from "#agent/options.js";
import { parsePolicy } from "#agent/policy-file.js";
import { decodeDataset, decodeTrainingJob } from "#common/domain/manifest.js";
import { readServiceConfig } from "#common/runtime/config.js";
import { readModel } from "#services/scheduler/model-reading.js";

const read = (path: string): string => readFileSync(path, "utf8");

interface ComposeService {
  image: string;
  user?: string;
  read_only?: boolean;
  cap_drop?: string[];
  command?: string[];
  environment?: Record<string, string>;
  depends_on?: Record<string, { condition: string }>;
  volumes?: string[];
  ports?: string[];
  healthcheck?: { test: string[] };
}

interface Compose {
  services: Record<string, ComposeService>;
  volumes: Record<string, unknown>;
}

const compose = parse(read("deploy/compose.yaml"), { merge: true }) as Compose;
const control = ["registry", "scheduler", "aggregator", "telemetry"];

test("compose: the four services start after the keys, with a configuration that the services accept", (t) => {
  for (const name of control) {
    const service = compose.services[name];
    t.deepEqual(service?.command, [`dist/services/${name}/main.js`]);
    t.is(service?.depends_on?.["keys"]?.condition, "service_completed_successfully");
    const env = Object.fromEntries(
      Object.entries(service?.environment ?? {}).map(([key, value]) => [key, value.replace(/\$\{\w+:-(.*)\}/, "$1")]),
    );
    const config = readServiceConfig(env, { replica: name });
    t.deepEqual(config.ok ? [] : config.violations, [], name);
    t.regex(service?.healthcheck?.test.join(" ") ?? "", /127\.0\.0\.1:9464\/readyz/);
  }
});

test("compose: everything that stays up is non-root, read-only and without capabilities", (t) => {
  for (const [name, service] of Object.entries(compose.services)) {
    if (name === "volumes") continue;
    t.regex(service.user ?? "0", /^[1-9]\d*:\d+$/, name);
    t.true(service.read_only, name);
    t.deepEqual(service.cap_drop, ["ALL"], name);
  }
});

test("compose: named volumes are declared, and only NATS is open to other hosts", (t) => {
  for (const [name, { volumes = [], ports = [] }] of Object.entries(compose.services)) {
    for (const volume of volumes) t.true((volume.split(":")[0] ?? "") in compose.volumes, `${name}: ${volume}`);
    if (name !== "nats")
      t.deepEqual(
        ports.filter((port) => !port.startsWith("127.0.0.1:")),
        [],
        name,
      );
  }
  t.true(compose.services["nats"]?.volumes?.every((volume) => !volume.startsWith("keys:")));
});

test("systemd: the unit passes systemd's own check where there is one, and is hardened", (t) => {
  const unit = read("deploy/systemd/shoal-agent.service");
  for (const setting of ["DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="]) {
    t.true(unit.split("\n").includes(setting), setting);
  }
  const run = spawnSync("systemd-analyze", ["verify", "deploy/systemd/shoal-agent.service"], { encoding: "utf8" });
  if (run.error === undefined)
    t.is(
      run.stderr
        .split("\n")
        .filter((line) => line.includes("shoal-agent"))
        .join("\n"),
      "",
    );
});

test("systemd: the agent understands the options of the unit and of its environment example", (t) => {
  const unit = read("deploy/systemd/shoal-agent.service");
  const example = read("deploy/systemd/agent.env.example");
  const given = /^SHOAL_AGENT_OPTIONS=(.*)$/m.exec(example)?.[1] ?? "";
  const line = /^ExecStart=.*dist\/agent\/main\.js (.*)$/m.exec(unit)?.[1] ?? "";
  const parsed = parseArguments(line.replace("$SHOAL_AGENT_OPTIONS", given).split(" "), "token");
  t.true(parsed.ok, parsed.ok ? "" : parsed.problems.join("\n"));
  if (parsed.ok) {
    t.deepEqual(checkOptions(parsed.options), []);
    t.deepEqual(parsed.options.dataset, { notes: "/srv/notes" });
    t.is(parsed.options.policyFile, "/etc/shoal/policy.yaml");
  }
});

for (const name of ["shakespeare-job", "sotu-job", "adapter-job"]) {
  test(`samples: ${name}.yaml is a job that can be trained`, (t) => {
    const decoded = decodeTrainingJob(parse(read(`deploy/samples/${name}.yaml`)), readModel);
    t.deepEqual(decoded.ok ? [] : decoded.violations, []);
  });
}

test("samples: the dataset's passport and the device's policy agree with the job on it", (t) => {
  const dataset = decodeDataset(parse(read("deploy/samples/sotu-dataset.yaml")));
  const policy = parsePolicy(read("deploy/samples/data-policy.yaml"));
  const job = decodeTrainingJob(parse(read("deploy/samples/sotu-job.yaml")), readModel);
  if (!dataset.ok || !policy.ok || !job.ok) {
    t.fail(JSON.stringify([dataset, policy, job]));
    return;
  }
  t.is(dataset.value.metadata?.name, job.value.spec?.data?.dataset);
  t.true(policy.policy.purposes.includes(job.value.spec?.data?.purpose ?? ""));
  t.true((job.value.spec?.cohort?.min ?? 0) >= (dataset.value.spec?.minCohort ?? 0));
  t.true((job.value.spec?.cohort?.min ?? 0) >= policy.policy.minCohort);
});

test("the image is built from the locked packages and does not run as root", (t) => {
  const lines = read("deploy/Dockerfile").split("\n");
  t.true(lines.includes("RUN npm ci"));
  const last = lines.slice(lines.findLastIndex((line) => line.startsWith("FROM ")));
  t.true(last.includes("USER 1000:1000"));
});
