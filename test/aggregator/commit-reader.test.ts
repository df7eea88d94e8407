import test from "ava";
import fc from "fast-check";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  freeze,
  reconcile,
  resultOf,
  tallyOf,
  upload,
  type World,
} from "./world.js";

/** In fp32 small enough to be read together, and so large that it is read abreast with others. */
const SIZES = [600, 263_000];
const drawn = new Map(SIZES.map((size) => [size, Array.from({ length: 5 }, (_, i) => draw(size, i))]));
const WRONG = `sha256:${"0".repeat(64)}`;

/** What a device commits. */
type Kind = "good" | "other digest" | "not finite" | "too long" | "missing chunk" | "of another";
interface Commitment {
  device: string;
  kind: Kind;
}

async function send(world: World, { device, kind }: Commitment, place: number): Promise<void> {
  const values = (drawn.get(world.base.length)?.[place % 5] as Float32Array).slice();
  if (kind === "too long") values.fill(1e3);
  const manifest = await upload(world, device, values, 10 - (place % 5));
  const last = manifest.chunkSeqs.at(-1) as number;
  if (kind === "not finite") {
    const chunk = (await world.log.readChunk(last))?.bytes.slice() as Uint8Array;
    chunk.fill(0xff, chunk.length - 4);
    const { seq } = await world.uplink(device).appendChunk(manifest.round, `bad-${place}`, chunk);
    manifest.chunkSeqs.splice(-1, 1, seq);
  }
  if (kind === "missing chunk") manifest.chunkSeqs.splice(-1, 1, last + 1);
  if (kind === "of another") {
    const other = DEVICES.find((each) => each !== device) as string;
    manifest.chunkSeqs.splice(0, 1, (await upload(world, other, values)).chunkSeqs[0] as number);
  }
  await commit(world, kind === "other digest" ? { ...manifest, digest: WRONG } : manifest);
}

async function judged(size: number, commitments: readonly Commitment[], isAtOnce: boolean, sumsMaxBytes: number) {
  const world = await createWorld({ strategy: "fedavg", parameters: size, maxUpdateNorm: 1e4, sumsMaxBytes });
  for (const [place, each] of commitments.entries()) {
    await send(world, each, place);
    if (!isAtOnce) await reconcile(world);
  }
  await reconcile(world);
  const { verdicts } = await tallyOf(world);
  if (verdicts.some(({ accepted }) => accepted)) {
    await freeze(world);
    await reconcile(world);
  }
  return { verdicts, digest: (await resultOf(world))?.weights?.digest };
}

const kinds: readonly Kind[] = ["good", "other digest", "not finite", "too long", "missing chunk", "of another"];
const commitments = fc.array(
  fc.record({
    device: fc.constantFrom(...DEVICES),
    kind: fc.oneof({ weight: 2, arbitrary: fc.constant<Kind>("good") }, fc.constantFrom(...kinds)),
  }),
  { minLength: 1, maxLength: 7 },
);

test("commits that are read together or abreast get the verdicts that they get one by one, and their round the same bits", async (t) => {
  const seen = new Set<string>();
  for (const size of SIZES) {
    await fc.assert(
      fc.asyncProperty(commitments, async (some) => {
        const alone = await judged(size, some, false, 0);
        for (const sumsMaxBytes of [0, 2 ** 25]) {
          t.deepEqual(await judged(size, some, true, sumsMaxBytes), alone);
        }
        for (const { reason, accepted } of alone.verdicts) seen.add(accepted ? "accepted" : reason);
      }),
      { numRuns: size === 600 ? 60 : 12 },
    );
  }
  t.deepEqual(
    [...seen].sort(),
    ["BadPayload", "Duplicate", "NormExceeded", "NotFinite", "WrongDigest", "accepted"].sort(),
  );
});

test("a device that commits twice among those that are read abreast does not cost the round its sums", async (t) => {
  const [ann = "", bob = "", cyd = ""] = DEVICES;
  const world = await createWorld({ strategy: "fedavg", parameters: 263_000, sumsMaxBytes: 2 ** 25 });
  // Four are read abreast.
  const devices = [ann, ann, bob, ann, cyd, ann, bob];
  for (const [place, device] of devices.entries()) await send(world, { device, kind: "good" }, place);
  await reconcile(world);
  t.deepEqual(
    (await tallyOf(world)).verdicts.map(({ accepted }) => accepted),
    [true, false, true, false, true, false, false],
  );
  await freeze(world);
  world.log.readChunk = () => Promise.reject(new Error("read again"));
  await reconcile(world);
  t.is((await resultOf(world))?.folded.length, 3);
});

test("of an update that is wrong in several places the first is told", async (t) => {
  const [ann = "", bob = ""] = DEVICES;
  const world = await createWorld({ strategy: "fedavg", parameters: 263_000 });
  const delta = drawn.get(263_000)?.[0] as Float32Array;
  const manifest = await upload(world, ann, delta);
  const others = await upload(world, bob, delta);
  await commit(world, { ...manifest, chunkSeqs: [manifest.chunkSeqs[0] as number, ...others.chunkSeqs.slice(1)] });
  // Abreast, so that reading goes on.
  await commit(world, others);
  await reconcile(world);
  t.regex((await tallyOf(world)).verdicts[0]?.message ?? "", /^chunk 1: /);
});
