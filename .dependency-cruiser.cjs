// The room rules of docs/architecture.md ("Who may import whom"). test/tooling/rooms.test.ts proves that each one bites.
const { include: pureFiles } = require("./.c8rc.json");

const common = "^services/common/";
const npm = "^node_modules/";
const kernelModule = `${common}tensor/kernels/module\\.ts$`;
const contracts = "^proto/gen/";

/** Regular expression for a glob of .c8rc.json, in which "**" comes last: the pure rooms are those whose coverage is demanded. */
const globPattern = (glob) =>
  `^${glob
    .replace("**/*", "*")
    .replaceAll(".", "\\.")
    .replace("*", glob.includes("**") ? ".+" : "[^/]+")}$`;

/** A rule: files under `from` may import nothing but what `allowed` names. */
const only = (name, comment, from, allowed, fromNot = []) => ({
  name,
  comment,
  severity: "error",
  from: { path: from, ...(fromNot.length > 0 ? { pathNot: fromNot } : {}) },
  to: { pathNot: allowed },
});

/** A rule: files under `from` (except `fromNot`) may not import `to`. */
const never = (name, comment, from, fromNot, to, toNot = []) => ({
  name,
  comment,
  severity: "error",
  from: { path: from, pathNot: fromNot },
  to: { path: to, ...(toNot.length > 0 ? { pathNot: toNot } : {}) },
});

const production = "^(services|agent)/";
const pureLibraries = "^node_modules/(zod|yaml|nkeys\\.js|@huggingface/tokenizers|@bufbuild/protobuf)/";

module.exports = {
  forbidden: [
    {
      name: "no-cycles",
      comment: "Two files that need each other are one file, or need a third.",
      severity: "error",
      from: {},
      to: { circular: true },
    },
    {
      name: "resolvable",
      comment: "An import must lead somewhere.",
      severity: "error",
      from: {},
      to: { couldNotResolve: true },
    },
    {
      name: "no-utils",
      comment: "A file is named after the thing in it.",
      severity: "error",
      from: {},
      to: { path: "(^|/)(utils?|helpers?|misc)(/|\\.ts$)", pathNot: npm },
    },
    only(
      "tensor",
      "Flat vectors: pure, and under everything.",
      `${common}tensor/`,
      [`${common}tensor/`, "^(crypto|zlib)$"],
      [kernelModule],
    ),
    only("tensor-kernels", "One file loads the compiled kernels, which lie beside it.", kernelModule, ["^fs$"]),
    only("domain", "Rules of the house: pure, over tensor and the contracts.", `${common}domain/`, [
      `${common}(domain|tensor)/`,
      contracts,
      "^node_modules/zod/",
    ]),
    only("graph", "Model graphs: pure, over tensor, domain and the contracts.", `${common}graph/`, [
      `${common}(graph|tensor|domain)/`,
      contracts,
      "^node_modules/@bufbuild/protobuf/",
    ]),
    only("ports", "Types of what the control plane asks of the world.", `${common}ports/`, [
      `${common}(ports|domain)/`,
      contracts,
    ]),
    only("runtime", "Controller machinery over ports; it knows no IO library.", `${common}runtime/`, [
      `${common}(runtime|ports|domain|tensor)/`,
      contracts,
      "^(crypto|events|timers|timers/promises|util)$",
    ]),
    never(
      "common-knows-no-service",
      "Common is under the services and the agent.",
      common,
      [],
      "^(services/(?!common/)|agent/)",
    ),
    only("contracts", "Generated code stands alone.", contracts, [contracts, npm]),
    {
      name: "services-apart",
      comment: "Services meet on the bus and in the store, never in code.",
      severity: "error",
      from: { path: "^services/(?!common/|cli/)([^/]+)/" },
      to: { path: "^(services/(?!common/)|agent/)", pathNot: "^services/$1/" },
    },
    never(
      "cli",
      "The CLI starts services as processes; it imports common, and of the agent its main, its backend and its reading of data.",
      "^services/cli/",
      [],
      "^(services/(?!common/|cli/)|agent/)",
      ["^agent/(main\\.ts$|backend/|data/)"],
    ),
    never(
      "agent",
      "The agent runs on foreign ground: of the services it knows common alone.",
      "^agent/",
      [],
      "^services/(?!common/)",
    ),
    never(
      "wiring-in-main",
      "IO adapters are chosen in main.ts; everything else speaks to ports.",
      "^(services/(?!common/|cli/)|agent/)",
      ["^services/[^/]+/(main|grpc|nats-credentials)\\.ts$", "^agent/(main\\.ts$|runtime/|transport/)"],
      `${common}adapters/`,
      [`${common}adapters/(grpc/|coded-error\\.ts$)`],
    ),
    only(
      "pure-files",
      "Pure files take time, randomness and IO as arguments: they import domain, tensor, graph and contracts only.",
      pureFiles.map(globPattern),
      [
        `${common}(domain|tensor|graph)/`,
        "^services/(?!common/)",
        "^agent/",
        contracts,
        "^(crypto|util|zlib)$",
        pureLibraries,
      ],
      [kernelModule],
    ),
    never(
      "onnxruntime",
      "One file names the native runtime.",
      production,
      ["^agent/backend/onnx\\.ts$"],
      `${npm}onnxruntime-node/`,
    ),
    never(
      "foreign-functions",
      "One file calls functions of a native library.",
      production,
      ["^agent/backend/c-api\\.ts$"],
      `${npm}koffi/`,
    ),
    never(
      "onnxruntime-web",
      "One file names the runtime of browsers.",
      production,
      ["^agent/backend/web\\.ts$"],
      `${npm}onnxruntime-web/`,
    ),
    never(
      "nats",
      "One adapter and the agent's transport speak NATS.",
      production,
      [`${common}adapters/nats/`, "^agent/transport/"],
      `${npm}(nats|nkeys\\.js|@nats-io/[^/]+)/`,
      [`${npm}(nkeys\\.js|@nats-io/nkeys)/`],
    ),
    never(
      "nkeys",
      "Keys are made and checked where credentials are.",
      production,
      [`${common}adapters/nats/`, "^agent/transport/", "^services/registry/nkey\\.ts$"],
      `${npm}(nkeys\\.js|@nats-io/nkeys)/`,
    ),
    never(
      "bullmq",
      "One adapter speaks to Redis.",
      production,
      [`${common}adapters/bullmq/`],
      `${npm}(bullmq|ioredis)/`,
    ),
    never("tests-stay-outside", "What ships does not lean on its tests.", production, [], "^test/"),
    {
      name: "shipped-dependencies",
      comment: "What ships imports only what package.json installs for it.",
      severity: "error",
      from: { path: production },
      to: { dependencyTypes: ["npm-dev", "npm-no-pkg", "npm-unknown"], dependencyTypesNot: ["type-only"] },
    },
  ],
  options: {
    doNotFollow: { path: ["node_modules"] },
    exclude: { path: ["^dist/"] },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
    webpackConfig: { fileName: `${__dirname}/.dependency-cruiser-resolve.cjs` },
    enhancedResolveOptions: {
      exportsFields: ["exports"],
      conditionNames: ["import", "require", "node", "default", "types"],
      extensions: [".ts", ".js", ".d.ts"],
    },
  },
};
