import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { credentials } from "@grpc/grpc-js";
import test, { type ExecutionContext } from "ava";
import { fromServiceError } from "#common/adapters/grpc/errors.js";
import { Handlers } from "#common/adapters/grpc/handlers.js";
import { GrpcServer } from "#common/adapters/grpc/server.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { AggregatorServiceClient, AggregatorServiceService } from "#proto/shoal/v1/aggregator_service.js";
import { RoundResult } from "#proto/shoal/v1/round.js";
import { AggregatorApi } from "#services/aggregator/aggregator-api.js";
import { serveAggregator } from "#services/aggregator/grpc.js";
import { forge, play } from "../aggregator/history.js";
import { resultOf, type World } from "../aggregator/world.js";

const MAIN = fileURLToPath(new URL("../../services/cli/main.js", import.meta.url));

interface Served {
  readonly world: World;
  readonly port: number;
  /** Runs `shoal` as a process of its own. */
  readonly shoal: (...args: string[]) => Promise<{ code: number | null; out: string; err: string }>;
}

/** An aggregator over a finished job of four rounds, of which the log retains two. */
async function serve(t: ExecutionContext): Promise<Served> {
  const world = await play();
  const stopping = new AbortController();
  const clock = new SystemClock();
  const handlers = new Handlers({ log: new MemoryLog(), clock, metrics: new MemoryMetrics(), signal: stopping.signal });
  const server = new GrpcServer();
  server.addService(AggregatorServiceService, serveAggregator(new AggregatorApi(world.ports), handlers));
  const port = await server.listen({ host: "127.0.0.1", port: 0 });
  const directory = mkdtempSync(join(tmpdir(), "shoal-test-"));
  t.teardown(async () => {
    stopping.abort();
    await server.stop(500);
    rmSync(directory, { recursive: true, force: true });
  });
  const nobody = ["127.0.0.1:1"];
  const grpc = { registry: nobody, scheduler: nobody, telemetry: nobody, aggregator: [`127.0.0.1:${port}`] };
  const context = { version: 1, grpc, metrics: {}, natsUrl: "n", redisUrl: "r", pids: {} };
  writeFileSync(join(directory, "context.json"), JSON.stringify(context));
  const shoal: Served["shoal"] = (...args) =>
    new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [MAIN, ...args, "--context", directory], {
        env: { PATH: "/usr/bin:/bin" },
      });
      let [out, err] = ["", ""];
      child.stdout.on("data", (data: Buffer) => (out += data.toString()));
      child.stderr.on("data", (data: Buffer) => (err += data.toString()));
      child.once("error", reject);
      child.once("close", (code) => resolve({ code, out, err }));
    });
  return { world, port, shoal };
}

test("replay prints the published digest; a result that was changed ends with 1 and both digests", async (t) => {
  const { world, shoal } = await serve(t);
  const digest = (await resultOf(world, 4))?.weights?.digest ?? "";
  const honest = await shoal("replay", "tiny", "4");
  t.is(honest.code, 0, honest.err);
  t.regex(honest.out, new RegExp(`^weights: +${digest}\n`));
  t.regex(honest.out, /verdict: +equal to what was published/);

  const other = `sha256:${"a".repeat(64)}`;
  await forge(world, "RoundResult", "tiny-4", (result) =>
    RoundResult.fromPartial({ ...result, weights: { digest: other, sizeBytes: 4 } }),
  );
  const changed = await shoal("replay", "tiny", "4", "--json");
  t.is(changed.code, 1);
  t.like(JSON.parse(changed.out), { weightsDigest: digest, publishedWeightsDigest: other });
  t.regex(changed.err, /round tiny-4 cannot be confirmed: it does not come to what was published/);

  const retired = await shoal("replay", "tiny", "1");
  t.is(retired.code, 1);
  t.regex(retired.err, /the update log does not hold round tiny-1 any more.*newest 2 rounds/);
  t.is((await shoal("replay", "tiny", "0")).code, 64);
  t.is((await shoal("replay", "No", "1")).code, 65);
});

test("verify tells each round, and ends with 1 where the lineage is broken", async (t) => {
  const { world, shoal } = await serve(t);
  const honest = await shoal("verify", "tiny", "--replay");
  t.is(honest.code, 0, honest.err);
  t.regex(honest.out, /^round 1 +partly .*\n {2}\? commits: the log does not hold the round any more/);
  t.regex(honest.out, /\nround 4 +ok .* replay\n/);
  t.regex(honest.out, /\njob tiny +ok .* origin model\n/);
  t.regex(honest.out, /\nBroken +0\n/);

  await forge(world, "RoundResult", "tiny-2", (result) => RoundResult.fromPartial({ ...result, tokens: 1 }));
  const changed = await shoal("verify", "tiny", "--first", "2", "--last", "3", "--json");
  t.is(changed.code, 1);
  t.regex(changed.err, /the lineage of job tiny is broken at tiny-2 \(sums\)\n$/);
  const { rounds } = JSON.parse(changed.out) as { rounds: { number?: number }[] };
  t.deepEqual(
    rounds.map(({ number = 0 }) => number),
    [2, 3, 0],
  );
});

test("bad requests name the field, and a caller who goes away frees the aggregator", async (t) => {
  const { port } = await serve(t);
  const client = new AggregatorServiceClient(`127.0.0.1:${port}`, credentials.createInsecure());
  t.teardown(() => client.close());
  const stream = client.replayRound({ job: "tiny", number: -1 });
  const error = fromServiceError(
    await t.throwsAsync(async () => {
      for await (const _ of stream) t.fail();
    }),
  );
  t.is(error.code, "INVALID_ARGUMENT");
  t.is(error.violations[0]?.field, "number");
  const left = client.verifyJob({ job: "tiny", firstRound: 0, lastRound: 0, replay: true });
  left.on("error", () => undefined);
  left.cancel();
  const again = client.replayRound({ job: "tiny", number: 4 });
  let outcomes = 0;
  for await (const { part } of again as AsyncIterable<{ part?: { $case: string } }>) {
    if (part?.$case === "outcome") outcomes += 1;
  }
  t.is(outcomes, 1);
});
