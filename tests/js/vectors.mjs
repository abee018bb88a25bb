/**
 * Holds verify.js against the committed vectors: `node vectors.mjs FILE...` prints, as one JSON object, how many cases
 * of each section were looked at, and each that came out otherwise. tests/vectors/README.md says what a case holds.
 */

import { readFile } from "node:fs/promises";
import { basename } from "node:path";

import * as v from "../../shared/pocache/receipt/web/verify.js";

const bytes = (text) => v.fromHex(text);

/** The value of a check, or undefined where it refuses; anything else that is thrown is a bug and comes through. */
async function judge(check) {
  try {
    return await check();
  } catch (error) {
    if (error instanceof v.Refusal) return undefined;
    throw error;
  }
}

const isAccepted = async (check) => (await judge(async () => ((await check()), true))) ?? false;

/** A decoded value as make_vectors.py writes it: integers and bytes as marked texts, maps as pairs. */
function tag(value) {
  if (typeof value === "bigint") return `i${value}`;
  if (typeof value === "string") return `s${value}`;
  if (value instanceof Uint8Array) return `b${v.toHex(value)}`;
  if (Array.isArray(value)) return value.map(tag);
  if (value instanceof Map) return { map: [...value].map(([key, one]) => [tag(key), tag(one)]) };
  return value;
}

const asMap = (value) => v.readJson(new TextEncoder().encode(JSON.stringify(value)), 100_000);
const readSchema = (value) => v.readRowSchema(asMap(value));
const readProfile = (text) => v.readProfile(v.readModelJson(new TextEncoder().encode(text)));

const readRows = (positions) =>
  new Map(
    positions.map(([position, rows]) => [position, rows.map(([kind, layer, row]) => ({ kind, layer, data: bytes(row) }))]),
  );

const stream = (seed) => new v.DeterministicStream(bytes(seed));

async function judgeValue(read) {
  const value = await judge(read);
  return value === undefined ? { valid: false } : { valid: true, value: tag(value) };
}

/** By file and section: what comes out here, in the fields in which the case says what must. */
const CHECKS = {
  challenge_v1: {
    seeds: async ({ tag: name, inputs }) => ({
      seed: v.toHex(
        await v.computeSeed(name, {
          network: bytes(inputs.network),
          chainHash: bytes(inputs.chain_hash),
          round: BigInt(inputs.round_number),
          randomness: bytes(inputs.randomness),
          root: bytes(inputs.root),
          leafCount: inputs.leaf_count,
          jobId: bytes(inputs.job_id),
          stage: inputs.stage,
        }),
      ),
    }),
    streams: ({ seed, word_index: index }) => {
      const words = stream(seed);
      const read = Array.from({ length: index + 1 }, () => String(words.nextWord()));
      return { first_words: read.slice(0, 4), word: read[index] };
    },
    belows: ({ seed, bound, values }) => {
      const words = stream(seed);
      return { values: values.map(() => String(words.below(BigInt(bound)))) };
    },
    lotteries: ({ seed, numerator, denominator, drawn }) => {
      const words = stream(seed);
      return { drawn: drawn.map(() => v.isDrawn(words, [BigInt(numerator), BigInt(denominator)])) };
    },
    subsets: ({ seed, n_of: population, count }) => ({ subset: v.drawSubset(stream(seed), population, count) }),
    corners: ({ seed, layer_count: layerCount, leaf_count: leaves, prompt_count: promptCount, full_share: share }) => ({
      corner: v.drawCorner(stream(seed), { layerCount, leaves, promptCount, fullShare: share.map(BigInt) }),
    }),
    positions: ({ seed, position_max: last, prompt_count: promptCount, sample_count: sampleCount }) => ({
      positions: v.drawPositions(stream(seed), { position_max: last }, { promptCount, sampleCount }),
    }),
    orders: judgeOrder,
  },
  leaves_v1: {
    schemas: async ({ schema }) => ({ digest: v.toHex(await v.computeSchemaDigest(readSchema(schema))) }),
    leaves: async ({ schema, position, scored, data }) => {
      const rows = await judge(() => v.decodeLeaf(readSchema(schema), position, scored, bytes(data)));
      return { rows: rows?.map((row) => [row.kind, row.layer, v.toHex(row.data)]) ?? null };
    },
  },
  distances_v1: {
    distances: async ({ format, ours, theirs }) => {
      const distance = await judge(() => v.computeLog2Distance(bytes(ours), bytes(theirs), format));
      return { log2_q16: distance === undefined ? null : Number(distance) };
    },
    profiles: async ({ json }) => {
      const digests = await judge(async () => v.computeProfileDigests(readProfile(json)));
      return { digests: digests?.map(v.toHex) ?? null };
    },
    comparisons: ({ profile, format, ours, theirs, checks_tokens: checksTokens }) => {
      const one = v.compareRows(readProfile(profile), readRows(ours), readRows(theirs), format, checksTokens);
      const numbers = [one.mean, one.peak, one.rowCount, one.positionCount, one.outlierCount, one.grade];
      const limits = [one.limits.mean_match_max_q16, one.limits.mean_mismatch_min_q16];
      const tokens = one.tokens && Object.values(one.tokens).map(Number);
      return { found: [one.verdict, ...[...numbers, ...limits].map(Number), one.isTooExact, tokens] };
    },
    binomials: ({ trials, rate, tail }) => ({ limit: Number(v.computeBinomialLimit(trials, BigInt(rate), BigInt(tail))) }),
  },
  merkle_v1: {
    inclusions: async ({ leaf, index, size, proof, root }) => ({
      valid: await isAccepted(() =>
        v.verifyInclusion(bytes(leaf), BigInt(index), BigInt(size), proof.map(bytes), bytes(root)),
      ),
    }),
    consistencies: async (one) => ({
      valid: await isAccepted(() =>
        v.verifyConsistency(
          BigInt(one.old_size),
          BigInt(one.new_size),
          bytes(one.old_root),
          bytes(one.new_root),
          one.proof.map(bytes),
        ),
      ),
    }),
    multiproofs: async ({ leaves, size, proof, root }) => {
      const hashes = leaves.map(([index, leaf]) => [index, bytes(leaf)]);
      return { valid: await isAccepted(() => v.verifyMultiproof(hashes, size, proof.map(bytes), bytes(root))) };
    },
  },
  envelopes_v1: {
    keys: async ({ text }) => {
      const key = await judge(() => v.decodeParticipant(text));
      return { key: key ? v.toHex(key) : null };
    },
    signatures: async ({ participant, message, signature }) => ({
      valid: await isAccepted(() => v.verifySignature(participant, bytes(message), bytes(signature))),
    }),
    json: ({ data }) => judgeValue(() => v.readJson(bytes(data), 10_000)),
    msgpack: ({ data }) => judgeValue(() => v.decodeMsgpack(bytes(data), 1_000_000)),
    envelopes: async ({ network, kind, data }) => {
      const opened = await judge(() => v.openEnvelope(bytes(data), bytes(network), kind));
      return { opened: opened ? { id: v.toHex(opened.id), sender: opened.sender } : null };
    },
    notes: async ({ data }) => {
      const note = await judge(() => v.parseNote(bytes(data)));
      const lines = note?.signatures.map((line) => [line.name, v.toHex(line.keyHash), v.toHex(line.signature)]);
      return { parsed: note ? [note.origin, String(note.size), v.toHex(note.root), lines] : null };
    },
  },
  sortition_v1: { orders: judgeOrder },
  payoffs_v1: { settlements: judgeSettlement },
  committee_v1: { settlements: judgeCommittee },
};

async function judgeOrder({ seed, stakes }) {
  const order = await judge(() => v.drawOrder(stream(seed), stakes.map(([name, stake]) => [name, BigInt(stake)])));
  return { order: order ?? null };
}

function fraction(text) {
  const [numerator, denominator = "1"] = text.split("/");
  return { numerator: BigInt(numerator), denominator: BigInt(denominator) };
}

async function judgeCommittee(one) {
  const names = ["alpha", "beta_generator", "beta_verifier", "phi", "levy", "bounty", "bonus"];
  const rules = {
    name: "fixed-fee-committee",
    ...Object.fromEntries(names.map((name, at) => [name, fraction(one.rules[at])])),
    committee_size: one.rules[7],
    committee_count: one.rules[8],
  };
  const ending = {
    case: one.case,
    cg: BigInt(one.costs[0]),
    cv: BigInt(one.costs[1]),
    user: one.user,
    generator: one.generator,
    verifiers: one.seats.map(([stage, opened, upheld]) => ({ participant: `v${stage}`, stage, opened, upheld })),
    deciding: null,
    prior: one.prior,
    isChallenged: one.challenged,
    reserve: BigInt(one.reserve),
  };
  const found = await judge(() => v.settleCommittee(rules, ending));
  if (!found) return { found: null };
  const payouts = [...found.payouts].map(([name, amount]) => [name, String(amount)]).sort();
  return { found: { payouts, pool: String(found.pool), slashed: found.slashed, drawn: String(found.drawn) } };
}

async function judgeSettlement(one) {
  const [alpha, beta, stageMax] = one.rules;
  const ending = {
    case: one.case,
    cg: BigInt(one.costs[0]),
    cv: BigInt(one.costs[1]),
    user: one.user,
    generator: "generator",
    verifiers: one.opened.map((opened, at) => ({ participant: `v${at + 1}`, stage: at + 1, opened })),
    deciding: one.deciding,
    prior: one.prior,
  };
  const rules = { alpha: fraction(alpha), beta: fraction(beta), stage_max: stageMax };
  const found = await judge(() => v.settleUnifiedPool(rules, ending));
  if (!found) return { found: null };
  const payouts = [...found.payouts].map(([name, amount]) => [name, String(amount)]).sort();
  return { found: { payouts, pool: String(found.pool), slashed: found.slashed } };
}

const report = { counts: {}, failures: [] };
for (const file of process.argv.slice(2)) {
  const name = basename(file, ".json");
  const sections = JSON.parse(await readFile(file, "utf8"));
  for (const [section, cases] of Object.entries(sections)) {
    if (!Array.isArray(cases)) continue;
    report.counts[`${name}.${section}`] = cases.length;
    for (const [at, one] of cases.entries()) {
      let found;
      try {
        found = await CHECKS[name][section](one);
      } catch (error) {
        found = { error: `${error.name}: ${error.message}` };
      }
      const stated = Object.fromEntries(Object.keys(found).map((key) => [key, one[key]]));
      const isComplete = section !== "json" && section !== "msgpack" ? true : found.valid === one.valid;
      if (!isComplete || JSON.stringify(found) !== JSON.stringify(stated)) {
        report.failures.push({ section: `${name}.${section}`, at, is: one.is ?? "", stated, found });
      }
    }
  }
}
process.stdout.write(`${JSON.stringify(report)}\n`);
