import { type CallOptions, credentials, Metadata } from "@grpc/grpc-js";
import test, { type ExecutionContext } from "ava";
import { fromServiceError } from "#common/adapters/grpc/errors.js";
import { Handlers } from "#common/adapters/grpc/handlers.js";
import { GrpcServer } from "#common/adapters/grpc/server.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { parseModelConfig } from "#common/graph/config.js";
import { parameterLayout } from "#common/graph/layout.js";
import { Device, Lease } from "#proto/shoal/v1/device.js";
import { JoinBundle } from "#proto/shoal/v1/device_wire.js";
import { FleetServiceClient, FleetServiceService, type WatchDevicesResponse } from "#proto/shoal/v1/fleet_service.js";
import { WatchEventType } from "#proto/shoal/v1/meta.js";
import { type Dataset, Model } from "#proto/shoal/v1/model.js";
import {
  type ExportResponse,
  ImportRequest,
  type ImportResponse,
  ModelServiceClient,
  ModelServiceService,
} from "#proto/shoal/v1/model_service.js";
import { FleetApi } from "#services/registry/fleet-api.js";
import { serveFleet, serveModels } from "#services/registry/grpc.js";
import { ModelApi } from "#services/registry/model-api.js";
import { loseBlob } from "#test/support/lost-blob.js";

type Reply<Res> = (error: Error | null, response: Res) => void;

/** The last of a generated client's overloads. */
type Method<Req, Res> = (request: Req, metadata: Metadata, options: Partial<CallOptions>, reply: Reply<Res>) => unknown;

/** One unary call as a promise; a refusal is a GrpcError. */
const call = <Req, Res>(method: Method<Req, Res>, request: Req): Promise<Res> =>
  new Promise((resolve, reject) => {
    method(request, new Metadata(), {}, (error, response) => {
      if (error === null) resolve(response);
      else reject(fromServiceError(error));
    });
  });

async function serve(t: ExecutionContext) {
  const stopping = new AbortController();
  const clock = new SystemClock();
  const store = new MemoryResourceStore(clock);
  const [log, metrics, blobs] = [new MemoryLog(), new MemoryMetrics(), new MemoryBlobStore()];
  const handlers = new Handlers({ log, clock, metrics, signal: stopping.signal });
  const revoked: string[] = [];
  const issuer = {
    issueDevice: () => Promise.resolve("jwt"),
    issueBootstrap: () => Promise.resolve({ jwt: "bootstrap", seed: "SU" }),
    revoke: (publicKey: string) => Promise.resolve(void revoked.push(publicKey)),
  };
  let secrets = 0;
  const randomBytes = (count: number): Uint8Array => new Uint8Array(count).fill(++secrets);
  const fleetApi = new FleetApi({ store, clock, log, credentials: issuer, randomBytes, publicServers: ["nats://hub"] });
  const server = new GrpcServer();
  server.addService(FleetServiceService, serveFleet(fleetApi, handlers));
  server.addService(ModelServiceService, serveModels(new ModelApi({ store, blobs, log }), handlers));
  const port = await server.listen({ host: "127.0.0.1", port: 0 });
  const fleet = new FleetServiceClient(`127.0.0.1:${port}`, credentials.createInsecure());
  const models = new ModelServiceClient(`127.0.0.1:${port}`, credentials.createInsecure());
  t.teardown(async () => {
    fleet.close();
    models.close();
    stopping.abort();
    await server.stop(500);
  });
  return { store, blobs, log, revoked, fleet, models };
}

async function refused(t: ExecutionContext, pending: Promise<unknown>, code: string, field?: string): Promise<void> {
  const error = fromServiceError(await t.throwsAsync(pending));
  t.is(error.code, code, error.message);
  if (field !== undefined) t.is(error.violations[0]?.field, field);
  t.true(error.message.length > 10);
}

const device = (name: string, labels: Record<string, string> = {}): Device =>
  Device.fromPartial({ metadata: newMeta(name, labels), spec: { publicKey: `U${name}`, joinTokenId: "none" } });

test("devices are listed in pages, with leases and by label", async (t) => {
  const { store, fleet } = await serve(t);
  for (const [i, name] of ["c", "a", "e", "b", "d"].entries()) {
    await store.create("Device", device(name, { parity: i % 2 === 0 ? "even" : "odd" }));
  }
  const lease = Lease.fromPartial({ metadata: newMeta("a"), expiresAtMs: Date.now() + 60_000 });
  await store.create("Lease", lease);
  const list = (fields: { pageSize?: number; pageToken?: string; labelSelector?: Record<string, string> }) =>
    call(fleet.listDevices.bind(fleet), { pageSize: 2, pageToken: "", labelSelector: {}, ...fields });
  const names: string[] = [];
  let pageToken = "";
  do {
    const page = await list({ pageToken });
    t.true(page.devices.length <= 2);
    names.push(...page.devices.map(({ device: found }) => found?.metadata?.name ?? ""));
    if (pageToken === "") t.deepEqual([page.devices[0]?.alive, page.devices[1]?.alive], [true, false]);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  t.deepEqual(names, ["a", "b", "c", "d", "e"]);
  const even = await list({ pageSize: 0, labelSelector: { parity: "even" } });
  t.deepEqual(
    even.devices.map(({ device: found }) => found?.metadata?.name),
    ["c", "d", "e"],
  );
  const first = await list({});
  await refused(t, list({ pageSize: -1 }), "INVALID_ARGUMENT", "page_size");
  await refused(t, list({ pageSize: 1001 }), "INVALID_ARGUMENT", "page_size");
  await refused(t, list({ pageToken: "garbage" }), "INVALID_ARGUMENT", "page_token");
  const moved = list({ pageToken: first.nextPageToken, labelSelector: { parity: "odd" } });
  await refused(t, moved, "INVALID_ARGUMENT", "page_token");
  await refused(t, list({ labelSelector: { "no label": "x" } }), "INVALID_ARGUMENT", "label_selector.key");
});

test("one device is got, cordoned, drained and deleted; unknown ones are NOT_FOUND", async (t) => {
  const { store, fleet, revoked } = await serve(t);
  await store.create("Device", device("a"));
  const { device: got } = await call(fleet.getDevice.bind(fleet), { name: "a" });
  t.is(got?.device?.metadata?.name, "a");
  t.is(got?.lease, undefined);
  const cordon = (uncordon: boolean) => call(fleet.cordonDevice.bind(fleet), { name: "a", uncordon });
  const { device: cordoned } = await cordon(false);
  t.deepEqual([cordoned?.spec?.cordoned, cordoned?.metadata?.generation], [true, 2]);
  t.is((await cordon(false)).device?.metadata?.generation, 2);
  const { device: drained } = await call(fleet.drainDevice.bind(fleet), { name: "a" });
  t.deepEqual([drained?.spec?.cordoned, drained?.spec?.draining], [true, true]);
  t.true((await cordon(false)).device?.spec?.draining);
  const { device: back } = await cordon(true);
  t.deepEqual([back?.spec?.cordoned, back?.spec?.draining], [false, false]);
  await call(fleet.deleteDevice.bind(fleet), { name: "a" });
  t.deepEqual(revoked, ["Ua", "Ua"]);
  for (const name of ["a", "", "x".repeat(5000), "a.b>*", "*"]) {
    const [code, field] = name === "a" ? (["NOT_FOUND"] as const) : (["INVALID_ARGUMENT", "name"] as const);
    await refused(t, call(fleet.getDevice.bind(fleet), { name }), code, field);
    await refused(t, call(fleet.cordonDevice.bind(fleet), { name, uncordon: false }), code, field);
    await refused(t, call(fleet.drainDevice.bind(fleet), { name }), code, field);
    await refused(t, call(fleet.deleteDevice.bind(fleet), { name }), code, field);
  }
  const wild = fleet.watchDevices({ name: "*", resourceVersion: "" }) as AsyncIterable<WatchDevicesResponse>;
  await refused(t, wild[Symbol.asyncIterator]().next(), "INVALID_ARGUMENT", "name");
});

test("a watch sends what exists, SYNCED, changes and deletions, and resumes from a version", async (t) => {
  const { store, fleet } = await serve(t);
  await store.create("Device", device("a"));
  await store.create("Device", device("b"));
  const watch = async (resourceVersion: string, count: number, then: () => Promise<unknown>) => {
    const stream = fleet.watchDevices({ name: "", resourceVersion });
    const seen: WatchDevicesResponse[] = [];
    for await (const event of stream as AsyncIterable<WatchDevicesResponse>) {
      seen.push(event);
      if (event.type === WatchEventType.SYNCED) await then();
      if (seen.length === count) break;
    }
    return seen;
  };
  const seen = await watch("", 4, () => store.delete("Device", "a"));
  const outline = (events: WatchDevicesResponse[]) => events.map(({ type, device: d }) => [type, d?.metadata?.name]);
  t.deepEqual(outline(seen), [
    [WatchEventType.PUT, "a"],
    [WatchEventType.PUT, "b"],
    [WatchEventType.SYNCED, undefined],
    [WatchEventType.DELETE, "a"],
  ]);
  await store.create("Device", device("c"));
  const resumed = await watch(seen[3]?.resourceVersion ?? "", 2, () => Promise.resolve());
  t.deepEqual(outline(resumed), [
    [WatchEventType.PUT, "c"],
    [WatchEventType.SYNCED, undefined],
  ]);
  for (const version of ["latest", "-1", "1.5", "9".repeat(40)]) {
    const error = await t.throwsAsync(watch(version, 1, () => Promise.resolve()));
    t.is(fromServiceError(error).code, "INVALID_ARGUMENT");
  }
});

test("join tokens are issued, stored without their secret, and revoked", async (t) => {
  const { store, fleet, log } = await serve(t);
  const issue = (fields: { ttlMs?: number; uses?: number; deviceLabels?: Record<string, string> }) =>
    call(fleet.issueJoinToken.bind(fleet), { ttlMs: 0, uses: 0, deviceLabels: {}, ...fields });
  const issued = await issue({ deviceLabels: { site: "pier" } });
  t.true(issued.token.startsWith("shoal1."));
  const bundle = JoinBundle.decode(Buffer.from(issued.token.slice("shoal1.".length), "base64url"));
  t.deepEqual([bundle.tokenId, bundle.servers, bundle.bootstrapJwt], [issued.id, ["nats://hub"], "bootstrap"]);
  t.true(bundle.secret.length >= 40);
  const stored = await store.get("JoinToken", issued.id);
  t.is(stored?.usesLeft, 1);
  t.false(JSON.stringify([stored, log.lines]).includes(bundle.secret));
  t.true(Math.abs(issued.expiresAtMs - Date.now() - 86_400_000) < 60_000);
  await refused(t, issue({ ttlMs: -1 }), "INVALID_ARGUMENT", "ttl_ms");
  await refused(t, issue({ ttlMs: 1e15 }), "INVALID_ARGUMENT", "ttl_ms");
  await refused(t, issue({ uses: -2 }), "INVALID_ARGUMENT", "uses");
  await refused(t, issue({ uses: 1_000_000 }), "INVALID_ARGUMENT", "uses");
  await refused(t, issue({ deviceLabels: { a: "b c" } }), "INVALID_ARGUMENT", "device_labels[a]");
  const revoke = (id: string) => call(fleet.revokeJoinToken.bind(fleet), { id });
  await revoke(issued.id);
  await revoke(issued.id);
  t.true((await store.get("JoinToken", issued.id))?.revoked);
  await refused(t, revoke("nobody"), "NOT_FOUND");
  await refused(t, revoke(""), "INVALID_ARGUMENT", "id");
});

const parsed = parseModelConfig({ family: "gpt2", vocabSize: 256, contextLength: 16, layers: 2, heads: 2, width: 64 });
if (!parsed.ok) throw new Error("the test's own config cannot be built");
const WEIGHTS = Float32Array.from({ length: parameterLayout(parsed.config).total }, (_, i) => Math.cos(i));
const FILES = { ...exportCheckpoint(parsed.config, WEIGHTS) };

function importModel(
  models: ModelServiceClient,
  name: string,
  files: Record<string, Uint8Array>,
): Promise<ImportResponse> {
  return new Promise((resolve, reject) => {
    const stream = models.import((error, response) => {
      if (error === null) resolve(response);
      else reject(fromServiceError(error));
    });
    // The server may answer before it was sent everything.
    stream.on("error", () => undefined);
    stream.write(ImportRequest.fromPartial({ part: { $case: "header", value: { name } } }));
    for (const [fileName, bytes] of Object.entries(files)) {
      for (let at = 0; at < bytes.length; at += 100_000) {
        const data = Buffer.from(bytes.subarray(at, at + 100_000));
        const value = { fileName, fileSizeBytes: bytes.length, data };
        stream.write(ImportRequest.fromPartial({ part: { $case: "piece", value } }));
      }
    }
    stream.end();
  });
}

async function exportModel(models: ModelServiceClient, name: string): Promise<Map<string, Buffer>> {
  const files = new Map<string, Buffer>();
  for await (const { piece } of models.export({ name, form: "", seqLen: 0 }) as AsyncIterable<ExportResponse>) {
    if (piece === undefined) throw new Error("an export without a piece");
    if (piece.data.length > 512 * 1024) throw new Error("a piece above 512 KiB");
    files.set(piece.fileName, Buffer.concat([files.get(piece.fileName) ?? Buffer.alloc(0), piece.data]));
  }
  return files;
}

test("a model that is imported is exported bit for bit, listed and got", async (t) => {
  const { models } = await serve(t);
  const { model } = await importModel(models, "tiny", FILES);
  t.is(model?.parameters, WEIGHTS.length);
  t.is(model?.family, "gpt2");
  t.is((model?.config as Record<string, unknown> | undefined)?.["n_embd"], 64);
  t.is(model?.tokenizer?.kind, "bytes");
  const files = await exportModel(models, "tiny");
  t.deepEqual([...files.keys()], ["config.json", "model.safetensors"]);
  t.true(files.get("model.safetensors")?.equals(FILES["model.safetensors"]));
  t.deepEqual(
    JSON.parse(files.get("config.json")?.toString() ?? ""),
    JSON.parse(Buffer.from(FILES["config.json"]).toString()),
  );
  const tokenizer = Buffer.from(JSON.stringify({ model: { vocab: { a: 0, b: 1 } } }));
  await importModel(models, "words", { ...FILES, "tokenizer.json": tokenizer });
  t.true((await exportModel(models, "words")).get("tokenizer.json")?.equals(tokenizer));
  const page = await call(models.listModels.bind(models), { pageSize: 1, pageToken: "" });
  t.deepEqual(
    page.models.map(({ metadata }) => metadata?.name),
    ["tiny"],
  );
  const next = await call(models.listModels.bind(models), { pageSize: 1, pageToken: page.nextPageToken });
  t.deepEqual([next.models[0]?.metadata?.name, next.nextPageToken], ["words", ""]);
  t.is((await call(models.getModel.bind(models), { name: "tiny" })).model?.metadata?.name, "tiny");
});

test("bad imports are refused and leave nothing", async (t) => {
  const { models, store } = await serve(t);
  await refused(t, importModel(models, "No Name", FILES), "INVALID_ARGUMENT", "header.name");
  await refused(
    t,
    importModel(models, "tiny", { "config.json": FILES["config.json"] }),
    "INVALID_ARGUMENT",
    "model.safetensors",
  );
  await refused(
    t,
    importModel(models, "tiny", { "evil.py": new Uint8Array(9) }),
    "INVALID_ARGUMENT",
    "piece.file_name",
  );
  const broken = { ...FILES, "model.safetensors": new Uint8Array(3_000_000).fill(1) };
  await refused(t, importModel(models, "tiny", broken), "INVALID_ARGUMENT", "model.safetensors");
  t.is((await store.list("Model")).items.length, 0);
  await importModel(models, "tiny", FILES);
  await refused(t, importModel(models, "tiny", FILES), "ALREADY_EXISTS");
});

test("exports, lists and gets of what is not there are refused", async (t) => {
  const { models, store, blobs } = await serve(t);
  await refused(t, exportModel(models, "ghost"), "NOT_FOUND");
  await refused(t, call(models.getModel.bind(models), { name: "ghost" }), "NOT_FOUND");
  await refused(t, exportModel(models, "a.b"), "INVALID_ARGUMENT", "name");
  await refused(t, call(models.getModel.bind(models), { name: "*" }), "INVALID_ARGUMENT", "name");
  await refused(
    t,
    call(models.listModels.bind(models), { pageSize: 5000, pageToken: "" }),
    "INVALID_ARGUMENT",
    "page_size",
  );
  await refused(
    t,
    call(models.listModels.bind(models), { pageSize: 0, pageToken: "?" }),
    "INVALID_ARGUMENT",
    "page_token",
  );
  const { model } = await importModel(models, "tiny", FILES);
  await loseBlob(blobs, model?.weights?.digest);
  const gone = exportModel(models, "tiny");
  await refused(t, gone, "FAILED_PRECONDITION");
  await store.create("Model", Model.fromPartial({ metadata: newMeta("odd"), config: { model_type: "odd" } }));
  const odd = exportModel(models, "odd");
  await refused(t, odd, "FAILED_PRECONDITION");
});

const PASSPORT = `
apiVersion: shoal.dev/v1alpha1
kind: Dataset
metadata: {name: letters, labels: {site: pier}}
spec: {description: Letters home, steward: the archive, purposes: [research], minCohort: 3, licence: CC0}
`;

test("a dataset's passport is created, replaced, and left alone when it is the same", async (t) => {
  const { models } = await serve(t);
  const apply = async (manifest: string): Promise<Dataset | undefined> =>
    (await call(models.applyDataset.bind(models), { manifest })).dataset;
  const created = await apply(PASSPORT);
  t.deepEqual([created?.metadata?.name, created?.spec?.minCohort, created?.metadata?.generation], ["letters", 3, 1]);
  t.true((created?.metadata?.uid ?? "") !== "");
  t.is((await apply(PASSPORT))?.metadata?.resourceVersion, created?.metadata?.resourceVersion);
  const changed = await apply(PASSPORT.replace("minCohort: 3", "minCohort: 4"));
  t.deepEqual([changed?.spec?.minCohort, changed?.metadata?.generation], [4, 2]);
  t.is(changed?.metadata?.uid, created?.metadata?.uid);
  const { datasets } = await call(models.listDatasets.bind(models), { pageSize: 0, pageToken: "" });
  t.is(datasets.length, 1);
  for (const manifest of [
    "",
    "{",
    "- a\n- b",
    "kind: [",
    "a: *b",
    `x: ${"y".repeat(300_000)}`,
    PASSPORT.replace("steward", "stewart"),
  ]) {
    await refused(t, apply(manifest), "INVALID_ARGUMENT");
  }
  await refused(t, apply(PASSPORT.replace("minCohort: 3", "minCohort: -3")), "INVALID_ARGUMENT", "spec.minCohort");
  await refused(
    t,
    call(models.listDatasets.bind(models), { pageSize: -1, pageToken: "" }),
    "INVALID_ARGUMENT",
    "page_size",
  );
});
