// A job published by a NATS client that knows nothing of this project: docs/protocol.md 2 (envelopes), 11.2 and 11.3 (subjects),
// 11.6 (fields). Usage: node publish_job.mjs NETWORK_DIR USER NATS_URL TOKEN…
//
// It needs @nats-io/transport-node and @msgpack/msgpack; Ed25519 and SHA-256 are Node's own.
import { createHash, createPrivateKey, createPublicKey, randomBytes, sign, verify } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

import { decode, encode } from "@msgpack/msgpack";
import { connect, headers, jwtAuthenticator, nkeyAuthenticator } from "@nats-io/transport-node";

const [directory, name, servers, ...tokens] = process.argv.slice(2);
const genesisJson = readFileSync(join(directory, "genesis.json"));
const genesis = JSON.parse(genesisJson);
const sha256 = (...parts) => createHash("sha256").update(Buffer.concat(parts)).digest();
const networkId = sha256(Buffer.from("pocache/genesis/v1\0"), genesisJson); // 1.5.1

// --- keys (1.3): NKey text forms of Ed25519 keys ---------------------------------------------------------------------
const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
function fromBase32(text) {
  let bits = 0n;
  for (const character of text) bits = (bits << 5n) | BigInt(ALPHABET.indexOf(character));
  const length = Math.floor((text.length * 5) / 8);
  const hex = (bits >> BigInt(text.length * 5 - length * 8)).toString(16).padStart(length * 2, "0");
  return Buffer.from(hex, "hex");
}
function toBase32(data) {
  const bits = [...data].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  return bits.match(/.{1,5}/g).map((five) => ALPHABET[parseInt(five.padEnd(5, "0"), 2)]).join("");
}
function crc16(data) {
  let crc = 0;
  for (const byte of data) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit += 1) crc = crc & 0x8000 ? ((crc << 1) ^ 0x1021) & 0xffff : (crc << 1) & 0xffff;
  }
  return Buffer.from([crc & 0xff, crc >> 8]);
}
const seedText = readFileSync(join(directory, "keys", `${name}.seed`), "ascii").trim();
const seed = fromBase32(seedText).subarray(2, 34);
const privateKey = createPrivateKey({
  key: Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), seed]),
  format: "der",
  type: "pkcs8",
});
const rawPublic = createPublicKey(privateKey).export({ format: "der", type: "spki" }).subarray(-32);
const tagged = Buffer.concat([Buffer.from([0xa0]), rawPublic]);
const user = toBase32(Buffer.concat([tagged, crc16(tagged)]));

// --- envelopes (2.1, 2.2, 2.3) ---------------------------------------------------------------------------------------
const lp = (data) => {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  return Buffer.concat([length, data]);
};
const computePreimage = (kind, payload) =>
  Buffer.concat([Buffer.from([0xff]), Buffer.from("pocache/v1"), lp(networkId), lp(Buffer.from(kind)), lp(payload)]);
function seal(kind, fields) {
  const payload = Buffer.from(encode(fields));
  const preimage = computePreimage(kind, payload);
  const data = encode({ kind, payload, kid: user, sig: sign(null, preimage, privateKey) });
  return { data, id: sha256(preimage, lp(Buffer.from(user))) };
}
/** Return the fields of a message, its signature checked; `signer` is who must have signed it. */
function open(data, kind, signer) {
  const envelope = decode(data, { useBigInt64: false });
  if (envelope.kind !== kind || (signer && envelope.kid !== signer)) throw new Error(`another ${envelope.kind} than expected`);
  const key = createPublicKey({
    key: Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), fromBase32(envelope.kid).subarray(1, 33)]),
    format: "der",
    type: "spki",
  });
  const payload = Buffer.from(envelope.payload);
  if (!verify(null, computePreimage(kind, payload), key, Buffer.from(envelope.sig))) throw new Error("a bad signature");
  return decode(payload);
}

// --- a submission.v1 on jobs.submitted -------------------------------------------------------------------------------
const packTokens = (ids) => Buffer.from(new Uint32Array(ids).buffer); // little-endian (1.1.2)
const unpackTokens = (data) => Array.from({ length: data.length / 4 }, (_, i) => Buffer.from(data).readUInt32LE(4 * i));
const [modelFile] = readdirSync(join(directory, "models")).filter((file) => file.endsWith(".entry"));
const now = Date.now();
const { data, id } = seal("submission.v1", {
  model_id: Buffer.from(modelFile.slice(0, 64), "hex"),
  prompt: packTokens(tokens.map(Number)),
  token_count_max: 8,
  sampling: { temperature_micro: 0, top_k: 0, top_p_micro: 1_000_000 },
  seed: null,
  eos_stop: true,
  salt: randomBytes(16),
  created_ms: now,
  expires_ms: now + 300_000,
});
const job = id.toString("hex");

const transport = (kind) => readFileSync(join(directory, "transport", `${name}.${kind}`), "ascii").trim();
const transportSeed = Buffer.from(transport("seed"));
const hasToken = readdirSync(join(directory, "transport")).includes(`${name}.jwt`); // a network whose users have accounts
const bus = await connect({
  servers,
  name,
  authenticator: hasToken ? jwtAuthenticator(transport("jwt"), transportSeed) : nkeyAuthenticator(transportSeed),
  inboxPrefix: `_INBOX.${name}`,
});
const events = bus.subscribe(`jobs.events.${user}.${job}`);
const chunks = bus.subscribe(`tokens.${user}.${job}.*`);
await bus.flush();
const publishHeaders = headers();
publishHeaders.set("Nats-Msg-Id", job); // a repeated publish is stored once
const stored = JSON.parse((await bus.request("jobs.submitted", data, { headers: publishHeaders, timeout: 10_000 })).string());
if (stored.error) throw new Error(stored.error.description); // a full stream refuses it: nothing was stored
console.log(JSON.stringify({ job, stream: stored.stream }));

(async () => {
  for await (const message of chunks) {
    const chunk = open(message.data, "token-chunk.v1"); // signed by whoever generates; the result below is what counts
    console.log(JSON.stringify({ tokens: unpackTokens(chunk.tokens) }));
  }
})();
for await (const message of events) {
  const event = open(message.data, "job-event.v1", genesis.signers.router);
  console.log(JSON.stringify({ phase: event.phase, code: event.code }));
  if (event.phase === "committed") {
    const result = open(event.result, "result.v1", event.generator);
    console.log(JSON.stringify({ output: unpackTokens(result.output), finish_reason: result.finish_reason }));
  }
  if (["settled", "refunded", "refused"].includes(event.phase)) break;
}
await bus.close();
