/**
 * Proof of Cache: a second verifier of receipts, for browsers and Node 20, written against docs/protocol.md.
 *
 * Owns its own reading of every byte: JSON, msgpack, base32, Merkle proofs, leaves, draws, the exact comparison, the
 * dispute, the payoffs. SHA-256, HMAC and Ed25519 are Web Crypto's. The BLS pairing is a step of its own, R8.pairing: it
 * runs where `@noble/curves` can be had (options.bls12_381, or an import), and is `not-checked` where it cannot.
 * Refuses what the Python verifier refuses, at the same step. Not covered, and said in docs/protocol.md 14.4: whether
 * the tokens are the model's where nobody audited.
 *
 *   verifyReceipt(bytesOrText, trustRoots, options) -> Promise<{valid, complete, failed, jobId, networkId, case, steps}>
 *   node verify.js RECEIPT --trust FILE [--json] [--curves MODULE]      exit 0 valid, 1 not, 2 the question is not one
 *
 * `valid`: no step failed. `complete`: besides, everything that applies could be checked. Amounts, times and rounds are
 * BigInt throughout; a Number never holds what may pass 2^53.
 */

// --- limits (docs/protocol.md 12.1) ------------------------------------------------------------------------------

const LIMITS = Object.freeze({
  PAYLOAD_BYTES_MAX: 1_000_000,
  ENVELOPE_BYTES_MAX: 1_000_512,
  CARRIED_BYTES_MAX: 998_000,
  CODEC_DEPTH_MAX: 8,
  CODEC_ITEMS_MAX: 65_536,
  TEXT_CHARS_MAX: 4_096,
  PROMPT_TOKENS_MAX: 65_536,
  OUTPUT_TOKENS_MAX: 32_768,
  LEAF_COUNT_MAX: 98_304,
  LAYER_COUNT_MAX: 512,
  ROW_WIDTH_MAX: 65_536,
  LEAF_BYTES_MAX: 800_000,
  SAMPLE_COUNT_MAX: 256,
  STAGE_COUNT_MAX: 16,
  SEAT_COUNT_MAX: 36,
  COMPARISONS_MAX: 1_024,
  OWNERS_MAX: 2_048,
  ATTEMPT_COUNT_MAX: 16,
  OPENING_PARTS_MAX: 256,
  MULTIPROOF_DIGESTS_MAX: 8_192,
  MEMBERS_MAX: 4_096,
  MODELS_PER_MEMBER_MAX: 64,
  BEACON_MEMBERS_MAX: 64,
  RECEIPT_BYTES_MAX: 64_000_000,
  RECEIPT_TEXT_BYTES_MAX: 90_000_000,
  NOTE_BYTES_MAX: 16_384,
  NOTE_SIGNATURES_MAX: 32,
  WITNESSES_MAX: 16,
  RECEIPT_ENVELOPES_MAX: 16_384,
  PROOF_DIGESTS_MAX: 128,
  GENESIS_BYTES_MAX: 65_536,
  TRUST_BYTES_MAX: 262_144,
  MICRO_MAX: 2n ** 63n - 1n,
  TIME_MS_MAX: 2n ** 53n,
  ROUND_MAX: 2n ** 63n - 1n,
});

const INT64_MIN = -(2n ** 63n);
const INT64_MAX = 2n ** 63n - 1n;
const UINT64_MAX = 2n ** 64n - 1n;

/** What was read or computed does not hold. Anything else that is thrown is a bug of this file, never a pass. */
export class Refusal extends Error {}

/** The user's own trust file is not one. */
export class TrustError extends Error {}

function refuse(message) {
  throw new Refusal(message);
}

function invariant(condition, message) {
  if (!condition) throw new Error(`cannot be: ${message}`);
}

function verifyRange(name, value, low, high) {
  invariant(typeof value === typeof low && typeof value === typeof high, `${name}: numbers of two kinds`);
  if (value < low || value > high) refuse(`${name} must be in ${low} … ${high}, not ${value}`);
}

// --- bytes -------------------------------------------------------------------------------------------------------

const UTF8 = new TextEncoder();
const EMPTY = new Uint8Array(0);

function decodeUtf8(data) {
  try {
    // ignoreBOM keeps the mark: it is part of the text that was signed.
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    return refuse("not UTF-8");
  }
}

function concat(...parts) {
  const result = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

function compareBytes(one, other) {
  const shared = Math.min(one.length, other.length);
  for (let at = 0; at < shared; at += 1) if (one[at] !== other[at]) return one[at] - other[at];
  return one.length - other.length;
}

const sameBytes = (one, other) => one.length === other.length && compareBytes(one, other) === 0;

const HEX_BYTE = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

export function toHex(data) {
  let text = "";
  for (const byte of data) text += HEX_BYTE[byte];
  return text;
}

export function fromHex(text) {
  if (typeof text !== "string" || !/^(?:[0-9a-f]{2})*$/.test(text)) refuse("hexadecimal digits are expected");
  return Uint8Array.from({ length: text.length / 2 }, (_, at) => parseInt(text.slice(2 * at, 2 * at + 2), 16));
}

/** An unsigned integer, big-endian, of that many bytes. */
function toUint(value, size) {
  const result = new Uint8Array(size);
  let left = BigInt(value);
  invariant(left >= 0n && left < 1n << BigInt(8 * size), `${value} does not fit ${size} bytes`);
  for (let at = size - 1; at >= 0; at -= 1) {
    result[at] = Number(left & 0xffn);
    left >>= 8n;
  }
  return result;
}

const toInt64 = (value) => toUint(BigInt.asUintN(64, BigInt(value)), 8);

const bigFromLittle = (data) => BigInt(`0x0${toHex(data.slice().reverse())}`);

/** Each part behind its length as u32 big-endian (1.1.1). */
function lp(...parts) {
  return concat(...parts.flatMap((part) => [toUint(part.length, 4), part]));
}

const ascii = (text) => UTF8.encode(text);

/** Text order by code points, which is that of the UTF-8 bytes; JavaScript's own is by UTF-16 units. */
const compareText = (one, other) => compareBytes(UTF8.encode(one), UTF8.encode(other));

function countCodePoints(text) {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

/** Floor division: towards minus infinity, as the protocol's ⌊ ⌋. */
function floorDiv(numerator, denominator) {
  const quotient = numerator / denominator;
  return numerator % denominator !== 0n && numerator < 0n !== denominator < 0n ? quotient - 1n : quotient;
}

const bigMax = (one, other) => (one > other ? one : other);
const bigMin = (one, other) => (one < other ? one : other);
const sum = (values) => values.reduce((total, value) => total + value, 0n);

async function sha256(...parts) {
  return new Uint8Array(await globalThis.crypto.subtle.digest("SHA-256", parts.length === 1 ? parts[0] : concat(...parts)));
}

async function hmacSha256(key, data) {
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const imported = await globalThis.crypto.subtle.importKey("raw", key, algorithm, false, ["sign"]);
  return new Uint8Array(await globalThis.crypto.subtle.sign("HMAC", imported, data));
}

// --- SHAKE256 (FIPS 202) -----------------------------------------------------------------------------------------

const SHAKE256_RATE = 136;

/** Round constants and rotations by FIPS 202's own rules (3.2.2, 3.2.5), rather than by copied tables. */
const KECCAK = (() => {
  const rounds = [];
  let register = 1;
  for (let round = 0; round < 24; round += 1) {
    let constant = 0n;
    for (let j = 0; j < 7; j += 1) {
      if (register & 1) constant |= 1n << BigInt((1 << j) - 1);
      register = register << 1 ^ (register & 0x80 ? 0x171 : 0);
    }
    rounds.push([Number(constant & 0xffffffffn) | 0, Number(constant >> 32n) | 0]);
  }
  const steps = [];
  let [x, y] = [1, 0];
  for (let t = 0; t < 24; t += 1) {
    const [nextX, nextY] = [y, (2 * x + 3 * y) % 5];
    steps.push([x + 5 * y, (((t + 1) * (t + 2)) / 2) % 64]);
    [x, y] = [nextX, nextY];
  }
  // pi moves lane (x, y) to (y, 2x + 3y): the walk above visits them in that order.
  return { rounds, steps };
})();

function keccakPermute(state) {
  const column = new Int32Array(10);
  for (const [constantLow, constantHigh] of KECCAK.rounds) {
    for (let x = 0; x < 10; x += 1) {
      column[x] = state[x] ^ state[x + 10] ^ state[x + 20] ^ state[x + 30] ^ state[x + 40];
    }
    for (let x = 0; x < 5; x += 1) {
      const left = 2 * ((x + 4) % 5);
      const right = 2 * ((x + 1) % 5);
      const low = column[left] ^ (column[right] << 1 | column[right + 1] >>> 31);
      const high = column[left + 1] ^ (column[right + 1] << 1 | column[right] >>> 31);
      for (let y = 0; y < 50; y += 10) {
        state[2 * x + y] ^= low;
        state[2 * x + y + 1] ^= high;
      }
    }
    const first = KECCAK.steps[0][0];
    let [low, high] = [state[2 * first], state[2 * first + 1]];
    for (let t = 0; t < 24; t += 1) {
      const target = 2 * KECCAK.steps[(t + 1) % 24][0];
      const rotation = KECCAK.steps[t][1];
      const [nextLow, nextHigh] = [state[target], state[target + 1]];
      if (rotation >= 32) [low, high] = [high, low];
      const shift = rotation % 32;
      state[target] = shift ? low << shift | high >>> (32 - shift) : low;
      state[target + 1] = shift ? high << shift | low >>> (32 - shift) : high;
      [low, high] = [nextLow, nextHigh];
    }
    for (let y = 0; y < 50; y += 10) {
      const row = state.slice(y, y + 10);
      for (let x = 0; x < 10; x += 1) state[y + x] = row[x] ^ (~row[(x + 2) % 10] & row[(x + 4) % 10]);
    }
    state[0] ^= constantLow;
    state[1] ^= constantHigh;
  }
}

/** SHAKE256 of a message shorter than one block, squeezed block by block. */
class Shake256 {
  constructor(message) {
    invariant(message.length < SHAKE256_RATE, "only seeds are absorbed");
    const block = new Uint8Array(SHAKE256_RATE);
    block.set(message);
    block[message.length] ^= 0x1f;
    block[SHAKE256_RATE - 1] ^= 0x80;
    this.state = new Int32Array(50);
    const words = new DataView(block.buffer);
    for (let at = 0; at < SHAKE256_RATE / 4; at += 1) this.state[at] = words.getInt32(4 * at, true);
  }

  nextBlock() {
    keccakPermute(this.state);
    const block = new Uint8Array(SHAKE256_RATE);
    const words = new DataView(block.buffer);
    for (let at = 0; at < SHAKE256_RATE / 4; at += 1) words.setInt32(4 * at, this.state[at], true);
    return words;
  }
}

// --- Ed25519 keys and signatures (1.3) ---------------------------------------------------------------------------

const FIELD = 2n ** 255n - 19n;
const GROUP = 2n ** 252n + 27742317777372353535851937790883648493n;
const EDWARDS_D = 37095705934669439343138083508754565189542113879843219016388785533085940283555n;
const ROOT_OF_MINUS_1 = 19681161376707505956807079304988542015446066515923890162744021073123829784752n;

const mod = (value) => ((value % FIELD) + FIELD) % FIELD;

function power(base, exponent) {
  let [result, square, left] = [1n, mod(base), exponent];
  while (left) {
    if (left & 1n) result = (result * square) % FIELD;
    square = (square * square) % FIELD;
    left >>= 1n;
  }
  return result;
}

/** Addition on the twisted Edwards curve in extended coordinates; complete, so that it doubles too. */
function addPoints([x1, y1, z1, t1], [x2, y2, z2, t2]) {
  const a = mod((y1 - x1) * (y2 - x2));
  const b = mod((y1 + x1) * (y2 + x2));
  const c = mod(2n * EDWARDS_D * t1 * t2);
  const d = mod(2n * z1 * z2);
  const [e, f, g, h] = [b - a, d - c, d + c, b + a];
  return [mod(e * f), mod(g * h), mod(f * g), mod(e * h)];
}

function multiplyPoint(point, scalar) {
  let [result, double, left] = [[0n, 1n, 1n, 0n], point, scalar];
  while (left) {
    if (left & 1n) result = addPoints(result, double);
    double = addPoints(double, double);
    left >>= 1n;
  }
  return result;
}

const isIdentity = ([x, y, z]) => x === 0n && y === z;

/** Whether 32 bytes are the canonical spelling of a point of prime order, not the identity. */
function isPrimeOrderPoint(data) {
  const encoded = bigFromLittle(data);
  const y = encoded & (2n ** 255n - 1n);
  if (y >= FIELD) return false;
  const [u, v] = [mod(y * y - 1n), mod(EDWARDS_D * y * y + 1n)];
  let x = mod(u * power(v, 3n) * power(u * power(v, 7n), (FIELD - 5n) / 8n));
  const check = mod(v * x * x);
  if (check !== u) {
    if (check !== mod(-u)) return false;
    x = mod(x * ROOT_OF_MINUS_1);
  }
  const sign = encoded >> 255n;
  if (x === 0n && sign) return false;
  if ((x & 1n) !== sign) x = mod(-x);
  const point = [x, y, 1n, mod(x * y)];
  return !isIdentity(point) && isIdentity(multiplyPoint(point, GROUP));
}

/** y of the points whose order divides 8, and their second spellings; libsodium refuses them as R (1.3.4). */
const SMALL_ORDER_Y = new Set([
  0n,
  1n,
  FIELD - 1n,
  FIELD,
  FIELD + 1n,
  bigFromLittle(fromHex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")),
  bigFromLittle(fromHex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")),
]);

function crc16(data) {
  let crc = 0;
  for (const byte of data) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit += 1) crc = crc & 0x8000 ? (crc << 1 ^ 0x1021) & 0xffff : crc << 1;
  }
  return crc;
}

const BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const PREFIX_USER = 20 << 3;
const KEYS_KEPT_MAX = 4_096;
const decodedKeys = new Map();

/** The 32 bytes of a participant id (1.3.1), or a refusal; one key has one spelling. */
export function decodeParticipant(text) {
  if (typeof text !== "string" || text.length !== 56) refuse("a participant id has 56 characters");
  const known = decodedKeys.get(text);
  if (known) return known;
  const data = new Uint8Array(35);
  let [bits, count, at] = [0, 0, 0];
  for (const character of text) {
    const value = BASE32.indexOf(character);
    if (value < 0) refuse("a participant id is base32 in capitals");
    bits = (bits << 5 | value) & 0xfff;
    count += 5;
    if (count >= 8) {
      count -= 8;
      data[at] = bits >> count & 0xff;
      at += 1;
    }
  }
  const crc = crc16(data.subarray(0, 33));
  if (data[33] !== (crc & 0xff) || data[34] !== crc >> 8) refuse("the participant id's checksum is wrong");
  if (data[0] !== PREFIX_USER) refuse("not a user key: a participant id starts with U");
  const key = data.slice(1, 33);
  if (!isPrimeOrderPoint(key)) refuse("not a public key: not a canonical point of prime order");
  if (decodedKeys.size >= KEYS_KEPT_MAX) decodedKeys.clear();
  decodedKeys.set(text, key);
  return key;
}

export async function verifySignature(participant, message, signature) {
  const key = decodeParticipant(participant);
  if (signature.length !== 64) refuse(`a signature has 64 bytes, not ${signature.length}`);
  const commitment = bigFromLittle(signature.subarray(0, 32)) & (2n ** 255n - 1n);
  const isCanonical = bigFromLittle(signature.subarray(32)) < GROUP && !SMALL_ORDER_Y.has(commitment);
  if (!isCanonical || !(await verifyByWebCrypto(key, signature, message))) {
    refuse(`the signature is not ${participant}'s over this message`);
  }
}

async function verifyByWebCrypto(key, signature, message) {
  const imported = await globalThis.crypto.subtle.importKey("raw", key, { name: "Ed25519" }, false, ["verify"]);
  return globalThis.crypto.subtle.verify({ name: "Ed25519" }, imported, signature, message);
}

// --- JSON, read one way only -------------------------------------------------------------------------------------

const ESCAPES = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/** Stands where a number is not an integer; no field accepts it. */
class NotInteger {}

/**
 * Objects as Map, integers as BigInt. Refused: depth, a key given twice, floats, integers outside 64 bits, all that is
 * no JSON. `isLenient` is for the model entry's own two documents, which Python reads by its plain reader: the last of
 * two equal keys counts, and a float is refused by the field that it stands in.
 */
class JsonReader {
  constructor(text, { isLenient = false } = {}) {
    this.text = text;
    this.at = 0;
    this.isLenient = isLenient;
  }

  read() {
    const value = this.value(1);
    this.skipSpace();
    if (this.at !== this.text.length) this.fail("something follows the value");
    return value;
  }

  fail(what) {
    refuse(`not JSON: ${what} at character ${this.at}`);
  }

  skipSpace() {
    while (this.at < this.text.length && " \t\n\r".includes(this.text[this.at])) this.at += 1;
  }

  value(depth) {
    this.skipSpace();
    const first = this.text[this.at];
    if (first === "{" || first === "[") {
      if (depth > LIMITS.CODEC_DEPTH_MAX) refuse(`nested deeper than ${LIMITS.CODEC_DEPTH_MAX}`);
      this.at += 1;
      return first === "{" ? this.object(depth) : this.array(depth);
    }
    if (first === '"') return this.string();
    for (const [word, value] of [["true", true], ["false", false], ["null", null]]) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    return this.number();
  }

  object(depth) {
    const result = new Map();
    this.skipSpace();
    if (this.take("}")) return result;
    do {
      this.skipSpace();
      if (this.text[this.at] !== '"') this.fail("a key is expected");
      const key = this.string();
      this.skipSpace();
      if (!this.take(":")) this.fail("a colon is expected");
      const value = this.value(depth + 1);
      if (result.has(key) && !this.isLenient) refuse("a key is given twice");
      result.set(key, value);
      this.skipSpace();
    } while (this.take(","));
    if (!this.take("}")) this.fail("the end of an object is expected");
    return result;
  }

  array(depth) {
    const result = [];
    this.skipSpace();
    if (this.take("]")) return result;
    do {
      result.push(this.value(depth + 1));
      this.skipSpace();
    } while (this.take(","));
    if (!this.take("]")) this.fail("the end of a list is expected");
    return result;
  }

  take(character) {
    if (this.text[this.at] !== character) return false;
    this.at += 1;
    return true;
  }

  string() {
    const plain = /[^"\\\u0000-\u001f]*/y;
    let result = "";
    this.at += 1;
    for (;;) {
      plain.lastIndex = this.at;
      result += plain.exec(this.text)[0];
      this.at = plain.lastIndex;
      if (this.take('"')) return result;
      if (!this.take("\\")) this.fail("a text that does not end, or a control character in it,");
      const escape = this.text[this.at];
      if (escape === "u") {
        const digits = this.text.slice(this.at + 1, this.at + 5);
        if (!/^[0-9a-fA-F]{4}$/.test(digits)) this.fail("four hexadecimal digits are expected");
        result += String.fromCharCode(parseInt(digits, 16));
        this.at += 5;
      } else {
        if (!Object.hasOwn(ESCAPES, escape ?? "")) this.fail("an unknown escape");
        result += ESCAPES[escape];
        this.at += 1;
      }
    }
  }

  number() {
    const pattern = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/y;
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (!found) return this.constant();
    this.at = pattern.lastIndex;
    if (found[1] !== undefined || found[2] !== undefined) return this.notInteger();
    // Before it is converted: a million digits take seconds.
    const number = found[0].length <= 20 ? BigInt(found[0]) : UINT64_MAX + 1n;
    if (number < INT64_MIN || number > UINT64_MAX) {
      return this.isLenient ? new NotInteger() : refuse("an integer outside 64 bits");
    }
    return number;
  }

  constant() {
    for (const word of ["NaN", "Infinity", "-Infinity"]) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return this.notInteger();
      }
    }
    return this.fail("a value is expected");
  }

  notInteger() {
    return this.isLenient ? new NotInteger() : refuse("a number that is not an integer");
  }
}

export function readJson(data, bytesMax) {
  if (data.length > bytesMax) refuse(`${data.length} bytes of JSON exceed ${bytesMax}`);
  return new JsonReader(decodeUtf8(data)).read();
}

export function readModelJson(data) {
  const isMarked = data.length >= 3 && data[0] === 0xef && data[1] === 0xbb && data[2] === 0xbf;
  return new JsonReader(decodeUtf8(isMarked ? data.subarray(3) : data), { isLenient: true }).read();
}

// --- msgpack (2.4) -----------------------------------------------------------------------------------------------

class MsgpackReader {
  constructor(data) {
    this.data = data;
    this.view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    this.at = 0;
    this.mapEntries = 0;
  }

  read() {
    const value = this.value(1);
    if (this.at !== this.data.length) refuse("malformed msgpack: bytes after the end");
    return value;
  }

  take(size) {
    if (this.at + size > this.data.length) refuse("malformed msgpack: it ends too early");
    this.at += size;
    return this.at - size;
  }

  uint(size) {
    const at = this.take(size);
    if (size === 1) return this.view.getUint8(at);
    return size === 2 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  value(depth) {
    const head = this.uint(1);
    if (head <= 0x7f) return BigInt(head);
    if (head <= 0x8f) return this.map(head & 0x0f, depth);
    if (head <= 0x9f) return this.array(head & 0x0f, depth);
    if (head <= 0xbf) return this.text(head & 0x1f);
    if (head >= 0xe0) return BigInt(head - 256);
    switch (head) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
      case 0xc5:
      case 0xc6:
        return this.bytes(this.uint(1 << (head - 0xc4)));
      case 0xcc:
      case 0xcd:
      case 0xce:
        return BigInt(this.uint(1 << (head - 0xcc)));
      case 0xcf:
        return this.view.getBigUint64(this.take(8));
      case 0xd0:
        return BigInt(this.view.getInt8(this.take(1)));
      case 0xd1:
        return BigInt(this.view.getInt16(this.take(2)));
      case 0xd2:
        return BigInt(this.view.getInt32(this.take(4)));
      case 0xd3:
        return this.view.getBigInt64(this.take(8));
      case 0xd9:
      case 0xda:
      case 0xdb:
        return this.text(this.uint(1 << (head - 0xd9)));
      case 0xdc:
      case 0xdd:
        return this.array(this.uint(head === 0xdc ? 2 : 4), depth);
      case 0xde:
      case 0xdf:
        return this.map(this.uint(head === 0xde ? 2 : 4), depth);
      default:
        return refuse("malformed msgpack: a float, an extension, or no type at all");
    }
  }

  bytes(size) {
    const at = this.take(size);
    return this.data.slice(at, at + size);
  }

  text(size) {
    const at = this.take(size);
    return decodeUtf8(this.data.subarray(at, at + size));
  }

  enter(count, depth) {
    if (depth > LIMITS.CODEC_DEPTH_MAX) refuse(`nested deeper than ${LIMITS.CODEC_DEPTH_MAX}`);
    if (count > LIMITS.CODEC_ITEMS_MAX) refuse(`${count} items exceed ${LIMITS.CODEC_ITEMS_MAX}`);
  }

  array(count, depth) {
    this.enter(count, depth);
    const result = [];
    for (let index = 0; index < count; index += 1) result.push(this.value(depth + 1));
    return result;
  }

  map(count, depth) {
    this.enter(count, depth);
    this.mapEntries += 1 + count;
    if (this.mapEntries > LIMITS.CODEC_ITEMS_MAX) refuse(`more than ${LIMITS.CODEC_ITEMS_MAX} map entries`);
    const result = new Map();
    for (let index = 0; index < count; index += 1) {
      const key = this.value(depth + 1);
      if (typeof key !== "string") refuse("map key is not text");
      if (result.has(key)) refuse("map key given twice");
      result.set(key, this.value(depth + 1));
    }
    return result;
  }
}

export function decodeMsgpack(data, bytesMax) {
  if (data.length > bytesMax) refuse(`message of ${data.length} bytes exceeds ${bytesMax}`);
  return new MsgpackReader(data).read();
}

function packHead(count, [fixBase, fixMax], [code8, code16, code32]) {
  if (count <= fixMax) return Uint8Array.of(fixBase | count);
  if (code8 !== null && count <= 0xff) return Uint8Array.of(code8, count);
  if (count <= 0xffff) return concat(Uint8Array.of(code16), toUint(count, 2));
  return concat(Uint8Array.of(code32), toUint(count, 4));
}

/** The one canonical msgpack of maps, lists, texts, bytes and nil: what a receipt and an envelope are made of. */
function encodeMsgpack(value) {
  const parts = [];
  const put = (item) => {
    if (item === null) parts.push(Uint8Array.of(0xc0));
    else if (item instanceof Uint8Array) parts.push(packHead(item.length, [0, -1], [0xc4, 0xc5, 0xc6]), item);
    else if (typeof item === "string") {
      const text = UTF8.encode(item);
      parts.push(packHead(text.length, [0xa0, 31], [0xd9, 0xda, 0xdb]), text);
    } else if (Array.isArray(item)) {
      parts.push(packHead(item.length, [0x90, 15], [null, 0xdc, 0xdd]));
      item.forEach(put);
    } else {
      const entries = Object.entries(item);
      parts.push(packHead(entries.length, [0x80, 15], [null, 0xde, 0xdf]));
      for (const [key, one] of entries) {
        put(key);
        put(one);
      }
    }
  };
  put(value);
  return concat(...parts);
}

// --- messages (11.6): closed, strict, no conversion ---------------------------------------------------------------

const expect = (condition, what) => condition || refuse(`${what} is expected`);

const field = {
  bytes: (low, high) => (value) => {
    expect(value instanceof Uint8Array && value.length >= low && value.length <= high, `${low} … ${high} bytes`);
    return value;
  },
  text: (low, high) => (value) => {
    expect(typeof value === "string", "a text");
    const count = countCodePoints(value);
    expect(count >= low && count <= high, `a text of ${low} … ${high} characters`);
    return value;
  },
  pattern: (pattern) => (value) => {
    expect(typeof value === "string" && pattern.test(value), `a text like ${pattern.source}`);
    return value;
  },
  /** An integer that a Number holds exactly. */
  small: (low, high) => (value) => {
    invariant(high <= Number.MAX_SAFE_INTEGER, "too large for a Number");
    expect(typeof value === "bigint" && value >= BigInt(low) && value <= BigInt(high), `an integer ${low} … ${high}`);
    return Number(value);
  },
  /** An integer that stays a BigInt. */
  big: (low, high) => (value) => {
    expect(typeof value === "bigint" && value >= BigInt(low) && value <= BigInt(high), `an integer ${low} … ${high}`);
    return value;
  },
  bool: (value) => {
    expect(typeof value === "boolean", "true or false");
    return value;
  },
  oneOf: (...values) => (value) => {
    expect(values.includes(value), `one of ${values.join(", ")}`);
    return value;
  },
  list: (item, low, high) => (value) => {
    expect(Array.isArray(value) && value.length >= low && value.length <= high, `a list of ${low} … ${high}`);
    return value.map((one) => item(one));
  },
  optional: (item) => (value) => (value === null ? null : item(value)),
  /** A map of exactly these fields; one given as [reader, default] may be missing. */
  map: (shape) => (value) => {
    expect(value instanceof Map, "a map of fields");
    for (const key of value.keys()) expect(Object.hasOwn(shape, key), "no field but the known ones");
    const result = {};
    for (const [name, spec] of Object.entries(shape)) {
      const [read, ...standard] = Array.isArray(spec) ? spec : [spec];
      expect(value.has(name) || standard.length > 0, `a field ${name}`);
      try {
        result[name] = value.has(name) ? read(value.get(name)) : standard[0];
      } catch (error) {
        if (error instanceof Refusal) refuse(`${name}: ${error.message}`);
        throw error;
      }
    }
    return result;
  },
};

/** The numbers of a token check, in the order of the message (11.6). */
const TOKEN_CHECK_FIELDS = [
  "token_count",
  "mismatch_count",
  "mismatch_match_max",
  "mismatch_mismatch_min",
  "margin_sum_q16",
  "margin_sum_match_max_q16",
  "margin_sum_mismatch_min_q16",
  "margin_peak_q16",
  "margin_peak_match_max_q16",
  "margin_peak_mismatch_min_q16",
];

const L = LIMITS;
const digest32 = field.bytes(32, 32);
const salt16 = field.bytes(16, 16);
const participant = field.pattern(/^U[A-Z2-7]{55}$/);
const micro = field.big(0n, L.MICRO_MAX);
const timeMs = field.big(0n, L.TIME_MS_MAX);
const roundNumber = field.big(1n, L.ROUND_MAX);
const count53 = field.big(0n, L.TIME_MS_MAX);
const q16 = field.big(INT64_MIN, UINT64_MAX);
const attempt = field.small(1, L.ATTEMPT_COUNT_MAX);
const stage = field.small(1, L.SEAT_COUNT_MAX);
const stageOrNone = field.small(0, L.SEAT_COUNT_MAX);
const retry = field.small(0, 1);
const leafCount = field.small(1, L.LEAF_COUNT_MAX);
const publication = [field.small(1, 2 ** 31), 1];
const shortText = field.text(0, L.TEXT_CHARS_MAX);
const codeText = field.text(0, 64);
const carried = field.bytes(0, L.CARRIED_BYTES_MAX);
const packedPositions = field.bytes(4, 4 * L.SAMPLE_COUNT_MAX);
const purpose = field.oneOf("escrow", "generator_stake", "verifier_stake");

const sampling = field.map({
  temperature_micro: [field.small(0, 100_000_000), 0],
  top_k: [field.small(0, 1_000_000), 0],
  top_p_micro: [field.small(1, 1_000_000), 1_000_000],
});

const corner = field.map({
  layer_max: field.small(0, L.LAYER_COUNT_MAX - 1),
  position_max: field.small(0, L.LEAF_COUNT_MAX - 1),
  full_depth: field.bool,
});

const ENDINGS = [
  "agree",
  "confirm_generator",
  "confirm_prior",
  "acquittal",
  "conviction",
  "void",
  "no_opening",
  "equivocation",
];
const jobAttempt = { job_id: digest32, attempt };

const MESSAGES = {
  "submission.v1": {
    model_id: digest32,
    prompt: field.bytes(0, 4 * L.PROMPT_TOKENS_MAX),
    token_count_max: field.small(1, L.OUTPUT_TOKENS_MAX),
    sampling,
    seed: [field.optional(digest32), null],
    eos_stop: [field.bool, true],
    salt: salt16,
    created_ms: timeMs,
    expires_ms: timeMs,
  },
  "challenge-request.v1": { ...jobAttempt },
  "cancel-request.v1": { job_id: digest32 },
  "job-admitted.v1": {
    job_id: digest32,
    user: participant,
    submission: carried,
    generation_max_micro: micro,
    verification_max_micro: micro,
  },
  "lease.v1": {
    ...jobAttempt,
    generator: participant,
    user: participant,
    model_id: digest32,
    prompt_hash: digest32,
    prompt_count: field.small(1, L.PROMPT_TOKENS_MAX),
    token_count_max: field.small(1, L.OUTPUT_TOKENS_MAX),
    sampling,
    eos_stop: field.bool,
    seed: digest32,
    salt: salt16,
    schema_digest: digest32,
    profile_set: digest32,
    granted_ms: timeMs,
    deadline_ms: timeMs,
  },
  "attempt-charged.v1": { ...jobAttempt, generator: participant },
  "job-abandoned.v1": { job_id: digest32, reason: shortText },
  "epoch.v1": { number: roundNumber, key_hash: digest32, previous_key: field.optional(digest32) },
  "result.v1": {
    ...jobAttempt,
    lease: carried,
    output: field.bytes(4, 4 * L.OUTPUT_TOKENS_MAX),
    finish_reason: field.oneOf("stop", "length", "cancelled"),
    leaf_count: leafCount,
    root: digest32,
    binding: digest32,
    stack: shortText,
    latest_round: field.big(0n, L.ROUND_MAX),
    cancellation: [field.optional(carried), null],
  },
  "opening.v1": {
    ...jobAttempt,
    stage,
    retry,
    part: field.small(0, L.OPENING_PARTS_MAX - 1),
    part_count: field.small(1, L.OPENING_PARTS_MAX),
    positions: packedPositions,
    leaves: field.list(field.bytes(0, L.PAYLOAD_BYTES_MAX), 1, L.SAMPLE_COUNT_MAX),
    proof: field.bytes(0, 32 * L.MULTIPROOF_DIGESTS_MAX),
  },
  "commitment-recorded.v1": {
    ...jobAttempt,
    generator: participant,
    result: carried,
    log_index: count53,
    received_ms: timeMs,
    recorded_ms: timeMs,
    audit_round: roundNumber,
    window_close_round: roundNumber,
  },
  "checkpoint.v1": { size: count53, root: digest32, at_ms: timeMs, note: field.bytes(0, L.NOTE_BYTES_MAX) },
  "attempt-closed.v1": { ...jobAttempt },
  "audit-opened.v1": {
    ...jobAttempt,
    reason: field.oneOf("lottery", "challenge"),
    round_number: roundNumber,
    randomness: digest32,
    corner,
    challenge: [field.optional(carried), null],
  },
  "commitment-rebound.v1": {
    ...jobAttempt,
    missed_round: roundNumber,
    rebound_ms: timeMs,
    audit_round: roundNumber,
    window_close_round: roundNumber,
  },
  "audit-deepened.v1": { ...jobAttempt, challenge: carried },
  "window-closed.v1": { ...jobAttempt },
  "equivocation.v1": {
    ...jobAttempt,
    generator: participant,
    first_envelope_id: digest32,
    second_envelope_id: digest32,
  },
  "evidence.v1": { ...jobAttempt, result: carried },
  "opening-accepted.v1": { ...jobAttempt, stage, retry, participant, opening: carried },
  "openings-closed.v1": {
    ...jobAttempt,
    stage,
    retry,
    round_number: roundNumber,
    positions: packedPositions,
    opened: field.list(participant, 0, L.SEAT_COUNT_MAX + 1),
    missing: field.list(participant, 0, L.SEAT_COUNT_MAX + 1),
  },
  "snapshot.v1": {
    number: count53,
    members: field.list(
      field.map({
        participant,
        stake_micro: field.big(1n, L.MICRO_MAX),
        model_ids: field.list(digest32, 0, L.MODELS_PER_MEMBER_MAX),
      }),
      0,
      L.MEMBERS_MAX,
    ),
    owners: field.list(field.map({ participant, owner: participant }), 0, L.OWNERS_MAX),
    taken_ms: timeMs,
  },
  "stage-bound.v1": { ...jobAttempt, stage, ended_ms: timeMs, round_number: roundNumber },
  "verifier-drawn.v1": {
    ...jobAttempt,
    stage,
    round_number: roundNumber,
    snapshot: count53,
    place: field.small(0, L.MEMBERS_MAX - 1),
    participant,
  },
  "claim-sealed.v1": {
    ...jobAttempt,
    stage,
    retry,
    corner,
    leaf_count: leafCount,
    root: digest32,
    stack: shortText,
  },
  "stage-sealed.v1": {
    ...jobAttempt,
    stage,
    retry,
    corner,
    parties: field.list(
      field.map({
        participant,
        stage: stageOrNone,
        root: digest32,
        leaf_count: leafCount,
        corner,
        claim: [field.optional(carried), null],
      }),
      2,
      L.SEAT_COUNT_MAX + 1,
    ),
    sample_count: field.small(1, L.SAMPLE_COUNT_MAX),
    sealed_ms: timeMs,
  },
  "outcome.v1": {
    ...jobAttempt,
    case: field.oneOf(...ENDINGS),
    stage: stageOrNone,
    corner,
    verifiers: field.list(field.map({ participant, stage, opened: field.bool, upheld: field.bool }), 0, L.SEAT_COUNT_MAX),
    deciding: field.optional(participant),
    prior: field.optional(participant),
    is_challenged: field.bool,
    claims: field.list(carried, 0, L.SEAT_COUNT_MAX),
    comparisons: field.list(
      field.map({
        stage,
        retry,
        left: participant,
        right: participant,
        verdict: field.oneOf("match", "mismatch", "inconclusive"),
        mean_q16: q16,
        peak_q16: q16,
        mean_match_max_q16: q16,
        peak_match_max_q16: q16,
        mean_mismatch_min_q16: q16,
        peak_mismatch_min_q16: q16,
        distance_peak_q16: q16,
        row_count: count53,
        position_count: [count53, 0n],
        outlier_count: [count53, 0n],
        is_too_exact: [field.bool, false],
        grade: [field.big(0n, 3n), 0n],
        tokens: [field.optional(field.map(Object.fromEntries(TOKEN_CHECK_FIELDS.map((name) => [name, count53])))), null],
      }),
      0,
      L.COMPARISONS_MAX,
    ),
    reason: shortText,
  },
  "hold-request.v1": {
    purpose,
    ...jobAttempt,
    stage: [stageOrNone, 0],
    party: participant,
    amount_micro: micro,
    publication,
  },
  "hold-placed.v1": {
    purpose,
    ...jobAttempt,
    stage: stageOrNone,
    party: participant,
    amount_micro: micro,
    publication,
  },
  "hold-refused.v1": {
    purpose,
    ...jobAttempt,
    stage: stageOrNone,
    party: participant,
    code: codeText,
    reason: shortText,
    publication,
  },
  "payout-settled.v1": {
    job_id: digest32,
    attempt: field.small(0, L.ATTEMPT_COUNT_MAX),
    case: field.oneOf("no_challenge", ...ENDINGS, "refunded"),
    stage: stageOrNone,
    pool_micro: micro,
    generation_micro: micro,
    verification_micro: micro,
    reserve_micro: micro,
    lines: field.list(
      field.map({ account: codeText, amount_micro: micro, held_micro: micro }),
      0,
      4 + 2 * L.SEAT_COUNT_MAX,
    ),
    slashed: field.list(participant, 0, 1 + L.SEAT_COUNT_MAX),
  },
  "beacon-round.v1": {
    chain_hash: digest32,
    round_number: roundNumber,
    signature: field.bytes(48, 96),
    previous_signature: [field.bytes(0, 96), EMPTY],
  },
  "model-entry.v1": {
    model_id: digest32,
    name: field.text(1, 128),
    vocab_size: field.small(2, 2 ** 31),
    context_tokens_max: field.small(2, L.LEAF_COUNT_MAX),
    eos_tokens: field.list(field.big(INT64_MIN, UINT64_MAX), 0, 64),
    layer_count: field.small(1, L.LAYER_COUNT_MAX),
    stack: shortText,
    row_schema: field.bytes(0, 4_096),
    profile: field.bytes(0, 400_000),
    prompt_token_micro: micro,
    output_token_micro: micro,
    verify_token_micro: micro,
  },
};

const READERS = Object.fromEntries(Object.entries(MESSAGES).map(([kind, shape]) => [kind, field.map(shape)]));

// --- envelopes (2) -----------------------------------------------------------------------------------------------

const ENVELOPE_DOMAIN = concat(Uint8Array.of(0xff), ascii("pocache/v1"));

function parseEnvelope(data) {
  const value = decodeMsgpack(data, L.ENVELOPE_BYTES_MAX);
  const names = value instanceof Map ? [...value.keys()].sort().join() : "";
  if (names !== "kid,kind,payload,sig") refuse("an envelope has exactly the fields kind, payload, kid and sig");
  const [kind, payload, kid, sig] = ["kind", "payload", "kid", "sig"].map((name) => value.get(name));
  expect(typeof kind === "string" && /^[\x21-\x7e]{1,64}$/.test(kind), "a kind that is a name of at most 64 characters");
  expect(payload instanceof Uint8Array && payload.length <= L.PAYLOAD_BYTES_MAX, "a payload of bytes");
  expect(typeof kid === "string" && /^[\x00-\x7f]{56}$/.test(kid), "a kid that is a participant's key");
  expect(sig instanceof Uint8Array && sig.length === 64, "a sig of 64 bytes");
  return { kind, payload, kid, sig };
}

/** The body of an envelope of exactly this kind, its signature verified first; its sender and id. */
export async function openEnvelope(data, network, kind) {
  const envelope = parseEnvelope(data);
  if (envelope.kind !== kind) refuse(`expected an envelope of kind ${kind}, not ${envelope.kind}`);
  const preimage = concat(ENVELOPE_DOMAIN, lp(network, ascii(kind), envelope.payload));
  await verifySignature(envelope.kid, preimage, envelope.sig);
  const body = READERS[kind](decodeMsgpack(envelope.payload, L.PAYLOAD_BYTES_MAX));
  const id = await sha256(preimage, lp(ascii(envelope.kid)));
  return { kind, body, sender: envelope.kid, id, data };
}

/** A service's message on one of these topics: in its one spelling, signed by who may sign there. */
async function openMessage(data, network, genesis, topics) {
  const envelope = parseEnvelope(data);
  const candidates = topics.filter((topic) => topic.kind === envelope.kind);
  if (candidates.length === 0) refuse(`a message of kind ${envelope.kind} does not belong here`);
  if (!sameBytes(encodeMsgpack(envelope), data)) refuse(`the envelope of a ${envelope.kind} is not canonical`);
  const opened = await openEnvelope(data, network, envelope.kind);
  const topic = candidates.find((one) => getSigners(genesis, one.role).includes(opened.sender));
  if (!topic) refuse(`${envelope.kind} must be signed by the ${candidates[0].role}, not ${opened.sender}`);
  return { ...opened, topic };
}

function getSigners(genesis, role) {
  return role === "beacon" ? genesis.roundSigners : [genesis.signers[role]];
}

/** Topics of the record in a receipt's order, and what may be said once, or once for each value of these fields. */
const JOB_TOPICS = [
  ["job-admitted.v1", "router", []],
  ["job-abandoned.v1", "router", []],
  ["attempt-charged.v1", "router", ["attempt"]],
  ["hold-request.v1", "router", null],
  ["hold-request.v1", "verifier", null],
  ["commitment-recorded.v1", "commitments", []],
  ["attempt-closed.v1", "commitments", ["attempt"]],
  ["commitment-rebound.v1", "commitments", ["missed_round"]],
  ["audit-opened.v1", "commitments", []],
  ["audit-deepened.v1", "commitments", []],
  ["window-closed.v1", "commitments", []],
  ["equivocation.v1", "commitments", []],
  ["evidence.v1", "commitments", []],
  ["opening-accepted.v1", "commitments", null],
  ["openings-closed.v1", "commitments", ["stage", "retry"]],
  ["stage-bound.v1", "verifier", ["stage"]],
  ["verifier-drawn.v1", "verifier", ["stage", "place"]],
  ["stage-sealed.v1", "verifier", ["stage", "retry"]],
  ["outcome.v1", "verifier", []],
  ["hold-placed.v1", "ledger", null],
  ["hold-refused.v1", "ledger", null],
  ["payout-settled.v1", "ledger", []],
].map(([kind, role, once], order) => ({ kind, role, once, order }));

const MODEL_TOPIC = { kind: "model-entry.v1", role: "operator" };
const ROUND_TOPIC = { kind: "beacon-round.v1", role: "beacon" };
const SNAPSHOT_TOPIC = { kind: "snapshot.v1", role: "verifier" };
const EPOCH_TOPIC = { kind: "epoch.v1", role: "router" };
const CHECKPOINT_TOPIC = { kind: "checkpoint.v1", role: "commitments" };
const [ROUTER_HOLDS, VERIFIER_HOLDS] = JOB_TOPICS.filter((topic) => topic.kind === "hold-request.v1");

/** The messages of one job, by topic. */
class Dossier {
  constructor(record) {
    this.byTopic = JOB_TOPICS.map(() => []);
    this.count = record.length;
    this.jobId = record.length ? record[0].body.job_id : null;
    const ids = new Set();
    for (const one of record) {
      if (!sameBytes(one.body.job_id, this.jobId)) refuse(`a ${one.kind} of another job, ${toHex(one.body.job_id)}`);
      if (ids.has(toHex(one.id))) refuse(`the same ${one.kind} twice`);
      ids.add(toHex(one.id));
      this.byTopic[one.topic.order].push(one.body);
    }
    for (const topic of JOB_TOPICS) {
      if (topic.once === null) continue;
      const keys = this.byTopic[topic.order].map((body) => topic.once.map((name) => body[name]).join());
      if (new Set(keys).size !== keys.length) refuse(`two different ${topic.kind} where there can be one`);
    }
  }

  all(kind) {
    return this.byTopic[typeof kind === "string" ? topicOf(kind) : kind.order];
  }

  find(kind, fields = {}) {
    const wanted = Object.entries(fields);
    return this.all(kind).find((body) => wanted.every(([name, value]) => isSame(body[name], value))) ?? null;
  }

  get(kind, fields = {}) {
    const found = this.find(kind, fields);
    if (found === null) {
      const which = Object.entries(fields).map(([name, value]) => `${name} ${describe(value)}`);
      refuse(`no ${kind.kind ?? kind}${which.length ? ` with ${which.join(", ")}` : ""} is shown`);
    }
    return found;
  }

  get isRefused() {
    return this.find("hold-refused.v1", { purpose: "escrow" }) !== null && this.all("payout-settled.v1").length === 0;
  }

  get isOver() {
    return this.all("payout-settled.v1").length > 0 || this.isRefused;
  }

  getAuditRound() {
    const rounds = [...this.all("commitment-recorded.v1"), ...this.all("commitment-rebound.v1")];
    return rounds.map((body) => body.audit_round).reduce((one, other) => (one === null ? other : bigMax(one, other)), null);
  }

  /** The round that draws the verifiers of each stage that was drawn or waits for its draw. */
  getStageRounds() {
    const rounds = new Map(this.all("stage-bound.v1").map((body) => [body.stage, body.round_number]));
    for (const body of this.all("audit-opened.v1")) rounds.set(1, body.round_number);
    return new Map([...rounds].sort(([one], [other]) => one - other));
  }

  get drawnStages() {
    return new Set(this.all("verifier-drawn.v1").map((body) => body.stage));
  }

  /** Whether an equivocation ended the dispute, so that a draw that was bound may never have come. */
  get isCutShort() {
    return this.all("equivocation.v1").length > 0 && this.all("outcome.v1").every((one) => one.case === "equivocation");
  }

  /** Rounds that something was drawn from; a stage that an equivocation cut short needs none. */
  getNeededRounds() {
    const needed = new Set(this.all("openings-closed.v1").map((body) => body.round_number));
    for (const body of this.all("audit-opened.v1")) needed.add(body.round_number);
    const auditRound = this.getAuditRound();
    if (this.all("window-closed.v1").length && auditRound !== null) needed.add(auditRound);
    const drawn = this.drawnStages;
    const rounds = this.getStageRounds();
    const last = [...rounds.keys()].reduce((one, other) => Math.max(one, other), 0);
    for (const [number, round] of rounds) if (drawn.has(number) || !this.isCutShort || number !== last) needed.add(round);
    return [...needed].sort(compareNumbers);
  }

  getNeededSnapshots() {
    return [...new Set(this.all("verifier-drawn.v1").map((body) => body.snapshot))].sort(compareNumbers);
  }
}

const compareNumbers = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
/** By kind, where the kind alone names the topic: holds are asked for on two. */
const TOPIC_BY_KIND = new Map(
  JOB_TOPICS.filter((topic) => topic.kind !== "hold-request.v1").map((topic) => [topic.kind, topic.order]),
);

function topicOf(kind) {
  const order = TOPIC_BY_KIND.get(kind);
  invariant(order !== undefined, `${kind} is no topic of the record`);
  return order;
}

// --- findings ----------------------------------------------------------------------------------------------------

/** Equality of plain values, bytes by content. Number and BigInt never meet: that would be a bug, not a difference. */
function isSame(one, other) {
  if (one instanceof Uint8Array && other instanceof Uint8Array) return sameBytes(one, other);
  if (Array.isArray(one) && Array.isArray(other)) {
    return one.length === other.length && one.every((value, at) => isSame(value, other[at]));
  }
  if (one !== null && other !== null && typeof one === "object" && typeof other === "object") {
    const names = Object.keys(one);
    return (
      names.length === Object.keys(other).length &&
      names.every((name) => Object.hasOwn(other, name) && isSame(one[name], other[name]))
    );
  }
  const kinds = [typeof one, typeof other].sort().join();
  invariant(kinds !== "bigint,number", "a Number was compared with a BigInt");
  return one === other;
}

const SHOWN_CHARS_MAX = 400;

function describe(value) {
  const text = plain(value);
  return text.length <= SHOWN_CHARS_MAX ? text : `${text.slice(0, SHOWN_CHARS_MAX)}… (${text.length} characters)`;
}

function plain(value) {
  if (value instanceof Uint8Array) return toHex(value);
  if (Array.isArray(value)) return `(${value.map(plain).join(", ")})`;
  if (value !== null && typeof value === "object") {
    return Object.entries(value)
      .map(([name, one]) => `${name} ${plain(one)}`)
      .join(" ");
  }
  return String(value);
}

class Findings {
  constructor() {
    this.compared = [];
    this.status = "ok";
    this.reason = "";
  }

  equal(what, stated, computed) {
    if (!isSame(stated, computed)) refuse(`${what}: it says ${describe(stated)}; it must be ${describe(computed)}`);
    this.note(what, stated);
  }

  holds(what, condition, value, wanted) {
    if (!condition) refuse(`${what}: it says ${describe(value)}; it must be ${wanted}`);
    this.note(what, value);
  }

  note(what, value) {
    this.compared.push({ what, value: describe(value) });
  }

  /** This job has nothing for the step to look at. */
  skip(reason) {
    [this.status, this.reason] = ["not-applicable", reason];
  }

  /** It applies, and cannot be checked from what is here. */
  leaveOpen(reason) {
    [this.status, this.reason] = ["not-checked", reason];
  }
}

// --- genesis and trust roots (1.5, 14.2) --------------------------------------------------------------------------

const hexDigest = field.pattern(/^[0-9a-f]{64}$/);
const hexBytes = field.pattern(/^(?:[0-9a-f]{2})+$/);
const ticks = field.small(1, 10_000_000);
const SERVICE_ROLES = ["router", "commitments", "beacon", "verifier", "ledger", "operator"];

const SCHEMES = new Map([
  ["pedersen-bls-chained", { isChained: true, onG1: false, domain: "G2" }],
  ["pedersen-bls-unchained", { isChained: false, onG1: false, domain: "G2" }],
  ["bls-unchained-on-g1", { isChained: false, onG1: true, domain: "G2" }],
  ["bls-unchained-g1-rfc9380", { isChained: false, onG1: true, domain: "G1" }],
]);

const GENESIS_SEED_BYTES = 32;

function share(value) {
  const found = typeof value === "string" ? /^([0-9]{1,9})\/([1-9][0-9]{0,8})$/.exec(value) : null;
  expect(found !== null && Number(found[1]) <= Number(found[2]), "a share of at most the whole, such as 1/20");
  return [BigInt(found[1]), BigInt(found[2])];
}

function rationalOrNone(value) {
  const found = typeof value === "string" ? /^([0-9]{1,13})(?:\/([0-9]{1,13}))?$/.exec(value) : null;
  expect(found !== null, 'a fraction such as "6/5" or "5"');
  const [numerator, denominator] = [BigInt(found[1]), BigInt(found[2] ?? "1")];
  const termMax = 10n ** 12n;
  expect(numerator <= termMax && denominator >= 1n && denominator <= termMax, "a fraction");
  return { numerator, denominator };
}

function rational(value) {
  const found = rationalOrNone(value);
  expect(found.numerator >= 1n, "a fraction above zero");
  return found;
}

const floorOf = (factor, amount) => (amount * factor.numerator) / factor.denominator;

/** A reader of a map whose every field has a default, and that map of defaults itself. */
const withDefaults = (shape) => [
  field.map(shape),
  Object.fromEntries(Object.entries(shape).map(([name, [, standard]]) => [name, standard])),
];

const UNIFIED_POOL = "unified-pool";
const FIXED_FEE_COMMITTEE = "fixed-fee-committee";
/** What a genesis means that does not name its rules. */
const RULES_DEFAULT = FIXED_FEE_COMMITTEE;
const commonRules = { lease_fee_micro: [micro, 1_000n], unbonding_ticks: [ticks, 10_000] };

const RULES_SHAPES = {
  [UNIFIED_POOL]: withDefaults({
    name: [field.oneOf(UNIFIED_POOL), UNIFIED_POOL],
    alpha: [rational, rational("6/5")],
    beta: [rational, rational("5")],
    stage_max: [field.small(2, L.STAGE_COUNT_MAX), 5],
    ...commonRules,
  }),
  [FIXED_FEE_COMMITTEE]: withDefaults({
    name: [field.oneOf(FIXED_FEE_COMMITTEE), FIXED_FEE_COMMITTEE],
    alpha: [rational, rational("6/5")],
    beta_generator: [rational, rational("20")],
    beta_verifier: [rational, rational("20")],
    phi: [rational, rational("6/5")],
    levy: [rationalOrNone, rational("1/6")],
    recheck: [rationalOrNone, rational("1/10")],
    committee_size: [field.small(3, 15), 7],
    committee_count: [field.small(1, 2), 2],
    bounty: [rationalOrNone, rational("1/2")],
    bonus: [rationalOrNone, rational("1/4")],
    reserve: [rationalOrNone, rational("1/4")],
    ...commonRules,
  }),
};

/** The rules that are named, else the default ones. */
function readRules(value) {
  expect(value instanceof Map, "a map of rules");
  const shape = RULES_SHAPES[value.get("name") ?? RULES_DEFAULT];
  expect(shape !== undefined, "rules that this release knows");
  const rules = shape[0](value);
  if (isCommittee(rules)) verifyCommitteeRules(rules);
  return rules;
}

const isCommittee = (rules) => rules.name === FIXED_FEE_COMMITTEE;
const isAtMost = (one, other) => one.numerator * other.denominator <= other.numerator * one.denominator;

function verifyCommitteeRules({ committee_size: size, phi, alpha, recheck }) {
  expect(size % 2 === 1, "a committee that cannot be split");
  expect(isAtMost(phi, alpha), "φ ≤ α");
  expect(recheck.numerator <= recheck.denominator, "a share of rechecks of at most the whole");
}

/** How many looks, each with its claims and openings, a dispute can take at most. */
const countLooks = (rules) => (isCommittee(rules) ? 4 * TRIES + rules.committee_count : 2 * rules.stage_max);

const GENESIS = {
  version: [field.oneOf(1n), 1n],
  name: field.text(1, 64),
  created_ms: field.big(0n, UINT64_MAX),
  signers: (value) => {
    expect(value instanceof Map, "a map of signers");
    return Object.fromEntries([...value].map(([role, name]) => [role, participant(name)]));
  },
  chain: field.map({
    scheme: field.text(0, Infinity),
    public_key_hex: hexBytes,
    genesis_s: field.big(0n, UINT64_MAX),
    period_s: field.small(1, 86_400),
    genesis_seed_hex: hexBytes,
    beacon_id: [field.text(0, 64), "default"],
    source: [field.oneOf("local", "threshold", "relay"), "local"],
    threshold: [field.small(0, L.BEACON_MEMBERS_MAX), 0],
    members: [
      field.list(field.map({ participant, public_share_hex: hexBytes }), 0, L.BEACON_MEMBERS_MAX),
      [],
    ],
  }),
  rules: [readRules, RULES_SHAPES[RULES_DEFAULT][1]],
  audit: withDefaults({
    lottery_share: [share, share("1/10")],
    full_depth_share: [share, share("1/2")],
    sample_count: [field.small(2, L.SAMPLE_COUNT_MAX / 4), 16],
    bind_delay_ms: [field.small(0, 3_600_000), 3_000],
    window_rounds: [ticks, 40],
    commitment_lag_rounds_max: [ticks, 2],
    owner_stake_share: [share, share("1/3")],
  }),
  deadlines: withDefaults({
    queue_ticks: [ticks, 200],
    lease_ticks: [ticks, 60],
    seal_ticks: [ticks, 40],
    opening_ticks: [ticks, 20],
  }),
  bounds: withDefaults({
    open_jobs_max: [field.small(1, 10_000_000), 10_000],
    submissions_max: [field.small(1, 10_000_000), 10_000],
    attempt_max: [field.small(1, L.ATTEMPT_COUNT_MAX), 3],
    submission_age_ms_max: [field.small(1_000, 86_400_000), 600_000],
  }),
  demo: [field.bool, false],
  witnesses: [field.list(participant, 0, L.WITNESSES_MAX), []],
  ejection: [field.optional(field.map({ bond_share: [share, share("1/2")] })), null],
};

const readGenesisFields = field.map(GENESIS);

async function readGenesis(data, curves) {
  const genesis = readGenesisFields(readJson(data, data.length));
  verifyMembers(genesis.chain);
  if (new Set(genesis.witnesses).size !== genesis.witnesses.length) refuse("a witness is named once");
  const { deadlines, rules, audit, chain } = genesis;
  const bindRounds = Math.floor(audit.bind_delay_ms / (chain.period_s * 1_000)) + 2;
  const lookTicks = deadlines.seal_ticks + deadlines.opening_ticks + 2 * bindRounds;
  const disputeTicks = deadlines.lease_ticks + audit.window_rounds + countLooks(rules) * lookTicks;
  if (rules.unbonding_ticks <= disputeTicks) refuse(`rules.unbonding_ticks must exceed ${disputeTicks}`);
  const missing = SERVICE_ROLES.filter((role) => !Object.hasOwn(genesis.signers, role));
  if (missing.length) refuse(`the genesis names no signer for ${missing.join(", ")}`);
  genesis.beaconChain = await buildChain(chain, curves);
  const members = chain.members.map((member) => member.participant);
  genesis.roundSigners = members.length ? members : [genesis.signers.beacon];
  return genesis;
}

function verifyMembers(chain) {
  const isShared = chain.source === "threshold";
  if (isShared !== chain.members.length > 0 || isShared !== chain.threshold > 0) {
    refuse("members and a threshold belong to a chain whose source is threshold, and to no other");
  }
  if (isShared && chain.scheme !== "bls-unchained-g1-rfc9380") refuse("a threshold beacon signs one scheme only");
  if (new Set(chain.members.map((member) => member.participant)).size !== chain.members.length) {
    refuse("a participant is a member of the beacon once");
  }
}

async function buildChain(config, curves) {
  const scheme = SCHEMES.get(config.scheme);
  if (!scheme) refuse("the chain's scheme is none of drand's");
  const publicKey = fromHex(config.public_key_hex);
  const seed = fromHex(config.genesis_seed_hex);
  if (config.genesis_s > L.TIME_MS_MAX / 1_000n) refuse("the chain's genesis time is out of range");
  if (seed.length !== GENESIS_SEED_BYTES) refuse(`a genesis seed has ${GENESIS_SEED_BYTES} bytes`);
  verifyPointForm(publicKey, !scheme.onG1, "public key");
  if (curves) decodePoint(curves, publicKey, !scheme.onG1, "public key");
  const id = config.beacon_id === "default" ? EMPTY : UTF8.encode(config.beacon_id);
  const hash = await sha256(toUint(config.period_s, 4), toUint(config.genesis_s, 8), publicKey, seed, id);
  return { scheme, schemeName: config.scheme, publicKey, seed, genesisS: config.genesis_s, periodS: BigInt(config.period_s), hash };
}

const readTrustFields = field.map({
  version: [field.oneOf(1n), 1n],
  network_id: hexDigest,
  operator: participant,
  chain_hash: hexDigest,
  chain_scheme: field.text(0, 64),
  chain_public_key: field.pattern(/^[0-9a-f]{96}(?:[0-9a-f]{96})?$/),
  profiles: [field.list(hexDigest, 0, 1_024), []],
  witnesses: [field.list(participant, 0, L.WITNESSES_MAX), []],
  witness_quorum: [field.small(0, L.WITNESSES_MAX), 0],
});

function verifyQuorum(trust) {
  const { witnesses, witness_quorum: quorum } = trust;
  if (new Set(witnesses).size !== witnesses.length) refuse("a witness is named once");
  if (witnesses.length > 0 !== quorum > 0 || quorum > witnesses.length) refuse("a quorum is of the witnesses that are named");
  return trust;
}

/** Trust roots from a file's text or bytes, or from an object with the same fields. Throws TrustError. */
export function readTrust(source) {
  try {
    const data = typeof source === "string" ? UTF8.encode(source) : source;
    if (data instanceof Uint8Array) return verifyQuorum(readTrustFields(readJson(data, L.TRUST_BYTES_MAX)));
    expect(source !== null && typeof source === "object", "an object of trust roots");
    const asRead = (value) => (Number.isSafeInteger(value) ? BigInt(value) : value);
    const fields = Object.entries(source).map(([name, value]) => [name, asRead(value)]);
    return verifyQuorum(readTrustFields(new Map(fields)));
  } catch (error) {
    if (error instanceof Refusal) throw new TrustError(`these are no trust roots: ${error.message}`);
    throw error;
  }
}

// --- beacon (5) --------------------------------------------------------------------------------------------------

const SIGNATURE_DOMAINS = {
  G1: "BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_",
  G2: "BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_",
};

function computeRoundTime(chain, number) {
  verifyRange("round", number, 1n, L.ROUND_MAX);
  return (chain.genesisS + (number - 1n) * chain.periodS) * 1_000n;
}

/** The latest round due at a time; 0 before the chain's genesis. */
function computeRoundAt(chain, time) {
  verifyRange("time", time, 0n, L.TIME_MS_MAX);
  return bigMax(0n, floorDiv(time - chain.genesisS * 1_000n, chain.periodS * 1_000n) + 1n);
}

/** The first round due strictly after t + Δ (5.4.2). */
function bindRound(chain, time, delayMs) {
  verifyRange("time", time, 0n, L.TIME_MS_MAX);
  return bigMax(1n, floorDiv(time + BigInt(delayMs) - chain.genesisS * 1_000n, chain.periodS * 1_000n) + 2n);
}

/** What a round's signature is over: SHA256(previous signature, where the scheme is chained ‖ u64 round). */
async function computeRoundMessage(chain, number, previous) {
  verifyRange("round", number, 1n, L.ROUND_MAX);
  if (!chain.scheme.isChained) {
    if (previous.length) refuse(`a round of ${chain.schemeName} carries no previous signature`);
    return sha256(toUint(number, 8));
  }
  const size = number === 1n ? GENESIS_SEED_BYTES : 96;
  if (previous.length !== size) refuse(`before round ${number} stand ${size} bytes, not ${previous.length}`);
  if (number === 1n && !sameBytes(previous, chain.seed)) refuse("before the first round stands the genesis seed");
  return sha256(previous, toUint(number, 8));
}

/** Size and flags of a compressed point: all that can be said of it without its curve. */
function verifyPointForm(data, isG1, what) {
  const size = isG1 ? 48 : 96;
  if (data.length !== size) refuse(`a ${what} on ${isG1 ? "G1" : "G2"} has ${size} bytes, not ${data.length}`);
  if ((data[0] & 0x80) === 0) refuse(`the ${what} is not a compressed point`);
  if ((data[0] & 0x40) !== 0) refuse(`the ${what} is the identity`);
}

function decodePoint(curves, data, isG1, what) {
  verifyPointForm(data, isG1, what);
  const { Point } = isG1 ? curves.G1 : curves.G2;
  let point;
  try {
    point = Point.fromBytes(data);
    point.assertValidity();
  } catch {
    refuse(`the ${what} is not a point of ${isG1 ? "G1" : "G2"}`);
  }
  if (point.equals(Point.ZERO)) refuse(`the ${what} is the identity`);
  if (!sameBytes(point.toBytes(true), data)) refuse(`the ${what} is not in its one canonical spelling`);
  return point;
}

const PAIRINGS_KEPT_MAX = 1_024;
const verifiedPairings = new Set();

/** e(signature, generator) = e(H(message), key), by the curves that the caller has. */
function verifyPairing(curves, chain, message, signature) {
  const known = [chain.schemeName, toHex(chain.publicKey), toHex(message), toHex(signature)].join();
  if (verifiedPairings.has(known)) return;
  const { onG1, domain } = chain.scheme;
  const { G1, G2, fields } = curves;
  const signed = decodePoint(curves, signature, onG1, "signature");
  const key = decodePoint(curves, chain.publicKey, !onG1, "public key");
  const hashed = (onG1 ? G1 : G2).hashToCurve(message, { DST: SIGNATURE_DOMAINS[domain] });
  const pairs = onG1
    ? [{ g1: signed, g2: G2.Point.BASE }, { g1: hashed.negate(), g2: key }]
    : [{ g1: G1.Point.BASE.negate(), g2: signed }, { g1: key, g2: hashed }];
  if (!fields.Fp12.eql(curves.pairingBatch(pairs), fields.Fp12.ONE)) {
    refuse("the BLS signature is not this key's over this message");
  }
  if (verifiedPairings.size >= PAIRINGS_KEPT_MAX) verifiedPairings.clear();
  verifiedPairings.add(known);
}

// --- rows and leaves (3) -----------------------------------------------------------------------------------------

const ROW_KINDS = { K: 1, V: 2, HIDDEN: 3, SCORES: 4, RAW_DIGEST: 5 };
const LEAF_DOMAIN = ascii("pocache/leaf/v1");
const LEAF_HEADER_BYTES = LEAF_DOMAIN.length + 7;
const SCORE_WIDTH = 3;
const FLOAT_BYTES = { f16: 2, f32: 4 };

const readSchemaFields = field.map({
  kind: field.oneOf("row-schema.v1"),
  encoding: field.oneOf("sketch", "raw"),
  float_format: field.oneOf("f16", "f32"),
  layer_count: field.small(1, L.LAYER_COUNT_MAX),
  key_width: field.small(1, L.ROW_WIDTH_MAX),
  value_width: field.small(1, L.ROW_WIDTH_MAX),
  hidden_width: field.small(1, L.ROW_WIDTH_MAX),
  has_hidden: field.bool,
  has_scores: field.bool,
});

export function readRowSchema(value) {
  const schema = readSchemaFields(value);
  if (schema.encoding === "sketch" && new Set([schema.key_width, schema.value_width, schema.hidden_width]).size !== 1) {
    refuse("a sketch has one width for all rows");
  }
  if (computeLeafBytes(schema, true) > L.LEAF_BYTES_MAX) refuse("a leaf is too large");
  return schema;
}

export function computeSchemaDigest(schema) {
  const flags = (schema.has_hidden ? 1 : 0) | (schema.has_scores ? 2 : 0);
  const numbers = [schema.layer_count, schema.key_width, schema.value_width, schema.hidden_width];
  return sha256(
    lp(ascii("pocache/schema/v1"), ascii(schema.encoding), ascii(schema.float_format)),
    ...numbers.map((number) => toUint(number, 4)),
    Uint8Array.of(flags),
  );
}

/** The schema of a corner (3.4.2). */
export function restrictSchema(schema, { layer_max: layerMax, full_depth: fullDepth }) {
  verifyRange("layer_max", layerMax, 0, schema.layer_count - 1);
  if (!fullDepth) return { ...schema, layer_count: layerMax + 1, has_hidden: false, has_scores: false };
  if (layerMax !== schema.layer_count - 1) refuse(`full depth ends at layer ${schema.layer_count - 1}, not ${layerMax}`);
  return schema;
}

const rowFormat = (kind, format) => (kind === ROW_KINDS.SCORES ? "f32" : format);

/** Rows of one leaf in canonical order: [kind, layer, bytes]. */
function listRows(schema, isScored) {
  const size = FLOAT_BYTES[schema.float_format];
  const rows = [];
  for (let layer = 0; layer < schema.layer_count; layer += 1) {
    rows.push([ROW_KINDS.K, layer, size * schema.key_width], [ROW_KINDS.V, layer, size * schema.value_width]);
  }
  if (schema.has_hidden) rows.push([ROW_KINDS.HIDDEN, 0, size * schema.hidden_width]);
  if (schema.has_scores && isScored) rows.push([ROW_KINDS.SCORES, 0, FLOAT_BYTES.f32 * SCORE_WIDTH]);
  return rows;
}

function computeLeafBytes(schema, isScored) {
  return listRows(schema, isScored).reduce((size, [, , bytes]) => size + bytes, LEAF_HEADER_BYTES);
}

/** The rows of a leaf of exactly this schema and position: [{kind, layer, data}] in canonical order. */
export function decodeLeaf(schema, position, isScored, data) {
  const size = computeLeafBytes(schema, isScored);
  if (data.length !== size) refuse(`a leaf of ${data.length} bytes where ${size} are due`);
  verifyRange("position", position, 0, L.LEAF_COUNT_MAX - 1);
  const flags = (schema.has_hidden ? 1 : 0) | (schema.has_scores && isScored ? 2 : 0);
  const header = concat(LEAF_DOMAIN, toUint(position, 4), toUint(schema.layer_count, 2), Uint8Array.of(flags));
  if (!sameBytes(data.subarray(0, LEAF_HEADER_BYTES), header)) refuse(`leaf header is not that of position ${position}`);
  let start = LEAF_HEADER_BYTES;
  return listRows(schema, isScored).map(([kind, layer, bytes]) => {
    const row = data.subarray(start, start + bytes);
    start += bytes;
    if (!isFiniteRow(row, rowFormat(kind, schema.float_format))) refuse(`row ${kind} of layer ${layer} is not finite`);
    return { kind, layer, data: row };
  });
}

function isFiniteRow(row, format) {
  if (row.length % FLOAT_BYTES[format]) return false;
  for (let at = FLOAT_BYTES[format] - 1; at < row.length; at += FLOAT_BYTES[format]) {
    if (format === "f16" ? (row[at] & 0x7c) === 0x7c : (row[at] & 0x7f) === 0x7f && row[at - 1] & 0x80) return false;
  }
  return true;
}

function unpackTokens(data) {
  if (data.length % 4) refuse(`${data.length} bytes are not whole tokens of 4`);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return Array.from({ length: data.length / 4 }, (_, at) => view.getUint32(4 * at, true));
}

// --- comparison (7), in exact integers ----------------------------------------------------------------------------

const LOG2_CEIL_Q16 = 40n << 16n;
const LOG2_FLOOR_Q16 = -LOG2_CEIL_Q16;
const STANDARD_FLOOR_Q16 = -(4n << 16n);

/** Mantissa and exponent of each float, so that value = ±mantissa · 2^exponent in a fixed unit. */
function splitFloats(row, format) {
  const view = new DataView(row.buffer, row.byteOffset, row.byteLength);
  const [size, mantissaBits, exponentMask] = format === "f16" ? [2, 10, 0x1f] : [4, 23, 0xff];
  return Array.from({ length: row.length / size }, (_, at) => {
    const bits = size === 2 ? view.getUint16(2 * at, true) : view.getUint32(4 * at, true);
    const fraction = bits & ((1 << mantissaBits) - 1);
    const exponent = (bits >>> mantissaBits) & exponentMask;
    const mantissa = exponent ? fraction + (1 << mantissaBits) : fraction;
    return [bits >>> (8 * size - 1) ? -mantissa : mantissa, Math.max(exponent, 1)];
  });
}

/** Both rows as integers, whole multiples of one power of two: the smallest that occurs, as it cancels (7.1.1). */
function toIntegers(ours, theirs, format) {
  const rows = [splitFloats(ours, format), splitFloats(theirs, format)];
  let least = Infinity;
  for (const row of rows) for (const [mantissa, exponent] of row) if (mantissa) least = Math.min(least, exponent);
  const scale = ([mantissa, exponent]) => (mantissa ? BigInt(mantissa) << BigInt(exponent - least) : 0n);
  return rows.map((row) => row.map(scale));
}

/** ⌊2¹⁶ · log₂(‖ours − theirs‖ / ‖theirs‖)⌋, clamped to ±40 · 2¹⁶ (7.1). */
export function computeLog2Distance(ours, theirs, format) {
  if (ours.length !== theirs.length || !ours.length || ours.length % FLOAT_BYTES[format]) refuse("rows that cannot be compared");
  if (!isFiniteRow(ours, format) || !isFiniteRow(theirs, format)) refuse("a row has floats that are not finite");
  const [our, their] = toIntegers(ours, theirs, format);
  let [numerator, denominator] = [0n, 0n];
  for (let at = 0; at < our.length; at += 1) {
    const difference = our[at] - their[at];
    numerator += difference * difference;
    denominator += their[at] * their[at];
  }
  if (!numerator) return LOG2_FLOOR_Q16;
  if (!denominator) return LOG2_CEIL_Q16;
  const distance = computeHalfLog2(numerator, denominator);
  return distance < LOG2_FLOOR_Q16 ? LOG2_FLOOR_Q16 : distance > LOG2_CEIL_Q16 ? LOG2_CEIL_Q16 : distance;
}

const bitLength = (value) => value.toString(16).length * 4 - Math.clz32(parseInt(value.toString(16)[0], 16)) + 28;

/**
 * ⌊2¹⁶ · ½ · log₂(n / d)⌋ exactly: the mantissa is squared between a lower and an upper bound, one fractional bit each
 * time; where the bounds disagree about a bit, all is done again with twice the precision. A quotient that is a power of
 * two has equal bounds from the start, any other has an irrational logarithm, so this ends.
 */
function computeHalfLog2(numerator, denominator) {
  let exponent = BigInt(bitLength(numerator) - bitLength(denominator));
  const compare = (shift) => (shift >= 0n ? numerator >= denominator << shift : numerator << -shift >= denominator);
  if (!compare(exponent)) exponent -= 1n;
  const [top, bottom] = exponent >= 0n ? [numerator, denominator << exponent] : [numerator << -exponent, denominator];
  for (let bits = 64n; ; bits *= 2n) {
    const fraction = computeLog2Fraction(top, bottom, bits);
    if (fraction !== null) return (exponent << 15n) + fraction;
  }
}

function computeLog2Fraction(top, bottom, bits) {
  const [two, last] = [2n << bits, (1n << bits) - 1n];
  let low = (top << bits) / bottom;
  let high = ((top << bits) + bottom - 1n) / bottom;
  let fraction = 0n;
  for (let step = 0; step < 15; step += 1) {
    low = (low * low) >> bits;
    high = (high * high + last) >> bits;
    fraction <<= 1n;
    if (low >= two) {
      [low, high, fraction] = [low >> 1n, (high + 1n) >> 1n, fraction | 1n];
    } else if (high >= two) return null;
  }
  return fraction;
}

// Limits by sample size, of tokens, and of routed models (7.3 to 7.5, 7.7).
const STANDARD_BOUND_Q16 = 1n << 62n;
const MARGIN_CEIL_Q16 = 1n << 40n;
const RATE_ONE = 1n << 32n;
const MISMATCH_TAIL = 500_000n;
const MATCH_TAIL = 5_000n;
const GRADE_TAILS = [10n, 100n, 1_000n];
const BOUND_FACTOR = 4n;

function readIntegers(value, count) {
  expect(Array.isArray(value) && value.length === count && value.every((one) => typeof one === "bigint"), `${count} integers`);
  return value;
}

function readMeans(value) {
  expect(Array.isArray(value) && value.length > 0, "a list of mean limits");
  return value.map((row) => {
    const [isFull, positionCount, ...rest] = readIntegers(row, 7);
    expect(isFull === 0n || isFull === 1n, "a mean limit that begins with 0 or 1");
    expect(positionCount >= 1n && positionCount <= BigInt(L.SAMPLE_COUNT_MAX), "a mean limit of a number of positions");
    expect(rest.every((one) => one >= -STANDARD_BOUND_Q16 && one <= STANDARD_BOUND_Q16), "limits in range");
    const [first, second, third, match, mismatch] = rest;
    expect(first <= second && second <= third && match <= mismatch, "limits that ascend");
    return { isFull, positionCount, grades: [first, second, third], match, mismatch };
  });
}

function verifyLimits({ means, routing, tokens }) {
  const isBefore = (one, other) =>
    one.isFull < other.isFull || (one.isFull === other.isFull && one.positionCount < other.positionCount);
  if (means.some((one, at) => at > 0 && !isBefore(means[at - 1], one))) refuse("mean limits are not in ascending order");
  const isWithin = (value, low, high) => value >= low && value <= high;
  if (routing !== null) {
    const [trim, cut, rate] = routing;
    const isGood = isWithin(trim, 0n, 500n) && isWithin(cut, -STANDARD_BOUND_Q16, STANDARD_BOUND_Q16) && isWithin(rate, 0n, RATE_ONE);
    if (!isGood) refuse("routing limits are out of range");
  }
  if (tokens !== null) {
    const [clip, mismatchRate, marginRate, match, mismatch] = tokens;
    const isGood =
      isWithin(clip, 1n, MARGIN_CEIL_Q16) &&
      isWithin(mismatchRate, 0n, RATE_ONE) &&
      isWithin(marginRate, 0n, RATE_ONE) &&
      isWithin(match, 0n, MARGIN_CEIL_Q16) &&
      isWithin(mismatch, match, MARGIN_CEIL_Q16);
    if (!isGood) refuse("token limits are out of range");
  }
}

function encodeLimits({ means, routing, tokens, exact_max_q16: exact }) {
  const optional = (numbers) => (numbers === null ? [Uint8Array.of(0)] : [Uint8Array.of(1), ...numbers.map(toInt64)]);
  return concat(
    toUint(means.length, 4),
    ...means.flatMap((one) => [
      Uint8Array.of(Number(one.isFull)),
      toUint(Number(one.positionCount), 4),
      ...[...one.grades, one.match, one.mismatch].map(toInt64),
    ]),
    ...optional(routing),
    ...optional(tokens),
    ...optional(exact === null ? null : [exact]),
  );
}

/** The smallest c with P(X > c) ≤ 1 / tail for X of n trials at a rate in 2⁻³², exactly. */
export function computeBinomialLimit(trialCount, rate, tail) {
  const n = BigInt(trialCount);
  if (rate === RATE_ONE) return n;
  const [whole, other] = [1n << (32n * n), RATE_ONE - rate];
  let [term, above] = [other ** n, whole];
  for (let count = 0n; count < n; count += 1n) {
    above -= term;
    if (above * tail <= whole) return count;
    term = (term * (n - count) * rate) / ((count + 1n) * other);
  }
  return n;
}

/** ⌊2¹⁶ · gap⌋ of a score row, and whether the gap is above zero at all (7.7.2). */
function readMargin(row) {
  if (row.length !== 12) refuse("a score row has three floats");
  const bits = new DataView(row.buffer, row.byteOffset, row.byteLength).getUint32(8, true);
  const exponent = (bits >>> 23) & 0xff;
  if (exponent === 0xff) refuse("a score row has a gap that is not finite");
  if (bits >>> 31 || bits === 0) return { margin: 0n, isAbove: false };
  const mantissa = BigInt((bits & 0x7fffff) + (exponent ? 1 << 23 : 0));
  const shift = BigInt(Math.max(exponent, 1) - 150 + 16);
  const margin = shift >= 0n ? mantissa << shift : mantissa >> -shift;
  return { margin: margin < MARGIN_CEIL_Q16 ? margin : MARGIN_CEIL_Q16, isAbove: true };
}

/** The statistics and limits of the token check over [verifier's, generator's] score rows (7.7). */
function checkTokens(limits, pairs) {
  const [clip, mismatchRate, marginRate, peakMatch, peakMismatch] = limits;
  let [mismatched, total, peak] = [0n, 0n, 0n];
  for (const pair of pairs) {
    const gaps = pair.map(readMargin);
    const margin = bigMax(gaps[0].margin, gaps[1].margin);
    if (gaps[0].isAbove || gaps[1].isAbove) mismatched += 1n;
    total += ((margin < clip ? margin : clip) << 16n) / clip;
    peak = bigMax(peak, margin);
  }
  const count = (tail) => computeBinomialLimit(pairs.length, mismatchRate, tail);
  const sum = (tail) => computeBinomialLimit(pairs.length, marginRate, BOUND_FACTOR * tail) << 16n;
  const numbers = [
    BigInt(pairs.length),
    ...[mismatched, count(MATCH_TAIL), count(MISMATCH_TAIL)],
    ...[total, sum(MATCH_TAIL), sum(MISMATCH_TAIL)],
    ...[peak, peakMatch, peakMismatch],
  ];
  const isAbove = (at) => mismatched > numbers[1 + at] || total > numbers[4 + at] || peak > numbers[7 + at];
  let grade = 0n;
  for (const [at, tail] of GRADE_TAILS.entries()) if (mismatched > count(tail) || total > sum(tail)) grade = BigInt(at + 1);
  const message = Object.fromEntries(TOKEN_CHECK_FIELDS.map((name, at) => [name, numbers[at]]));
  return { message, isMismatch: isAbove(2), isMatch: !isAbove(1), grade };
}

const readProfileFields = field.map({
  kind: field.oneOf("matching-profile.v1"),
  thresholds: (value) => {
    expect(Array.isArray(value), "a list of thresholds");
    return value.map(readThreshold);
  },
  mean_match_max_q16: field.big(INT64_MIN, INT64_MAX),
  mean_mismatch_min_q16: field.big(INT64_MIN, INT64_MAX),
  peak_match_max_q16: field.big(INT64_MIN, INT64_MAX),
  peak_mismatch_min_q16: field.big(INT64_MIN, INT64_MAX),
  about: readAbout,
  means: [readMeans, []],
  routing: [(value) => readIntegers(value, 3), null],
  tokens: [(value) => readIntegers(value, 5), null],
  exact_max_q16: [field.big(-STANDARD_BOUND_Q16, STANDARD_BOUND_Q16), null],
});

const LIMIT_NAMES = ["mean_match_max_q16", "mean_mismatch_min_q16", "peak_match_max_q16", "peak_mismatch_min_q16"];

function readThreshold(value) {
  expect(Array.isArray(value) && value.length === 4, "a threshold of kind, layer, centre and scale");
  const [name, layer, centre, scale] = value;
  expect(typeof name === "string" && ["K", "V", "HIDDEN", "SCORES"].includes(name), "a row kind that can be compared");
  return {
    kind: ROW_KINDS[name],
    layer: field.small(0, L.LAYER_COUNT_MAX - 1)(layer),
    centre: field.big(LOG2_FLOOR_Q16, LOG2_CEIL_Q16)(centre),
    scale: field.big(1n, LOG2_CEIL_Q16)(scale),
  };
}

function readAbout(value) {
  expect(value instanceof Map && value.size <= 256, "a map of at most 256 items");
  const isShortText = (text) => text.isWellFormed() && UTF8.encode(text).length <= 4_096;
  for (const [key, one] of value) {
    const isNumber = typeof one === "bigint" && one >= INT64_MIN && one <= INT64_MAX;
    expect(isShortText(key) && (isNumber || (typeof one === "string" && isShortText(one))), "texts and integers");
  }
  return [...value].sort(([one], [other]) => compareText(one, other));
}

export function readProfile(value) {
  const profile = readProfileFields(value);
  const keys = profile.thresholds.map((one) => one.kind * L.LAYER_COUNT_MAX + one.layer);
  if (!keys.length || keys.some((key, at) => at > 0 && keys[at - 1] >= key)) refuse("thresholds are not in ascending order");
  if (profile.mean_match_max_q16 > profile.mean_mismatch_min_q16) refuse("a mean cannot both match and mismatch");
  if (profile.peak_match_max_q16 > profile.peak_mismatch_min_q16) refuse("a peak cannot both match and mismatch");
  verifyLimits(profile);
  profile.byRow = new Map(profile.thresholds.map((one) => [`${one.kind}.${one.layer}`, one]));
  return profile;
}

async function computeProfileDigest(profile) {
  const digest = await sha256(
    lp(ascii("pocache/profile/v1")),
    toUint(profile.thresholds.length, 4),
    ...profile.thresholds.flatMap((one) => [
      Uint8Array.of(one.kind),
      toUint(one.layer, 2),
      toInt64(one.centre),
      toInt64(one.scale),
    ]),
    ...LIMIT_NAMES.map((name) => toInt64(profile[name])),
    ...profile.about.map(([key, value]) =>
      lp(UTF8.encode(key), ascii(typeof value === "bigint" ? "i" : "s"), UTF8.encode(String(value))),
    ),
  );
  const isPlain = !profile.means.length && [profile.routing, profile.tokens, profile.exact_max_q16].every((one) => one === null);
  return isPlain ? digest : sha256(lp(ascii("pocache/profile-limits/v1"), digest), encodeLimits(profile));
}

/** The digest of a profile, and of the set that has only this one: what a job binds (7.5.3). */
export async function computeProfileDigests(profile) {
  const digest = await computeProfileDigest(profile);
  return [digest, await sha256(lp(ascii("pocache/profile-set/v1"), digest))];
}

/** The verdict over all rows and its numbers (7.2, 7.3); `theirs` is the side whose norm divides, and whose tokens are checked. */
export function compareRows(profile, ours, theirs, format, checksTokens = false) {
  if (!isSame([...ours.keys()], [...theirs.keys()])) refuse("the two sides opened different positions");
  const found = { standards: [], scores: [], positionPeaks: [], output: [], distancePeak: null, isFullDepth: false };
  for (const [position, ourRows] of ours) {
    const theirRows = theirs.get(position);
    const keysOf = (rows) => rows.map(({ kind, layer }) => `${kind}.${layer}`);
    if (!isSame(keysOf(ourRows), keysOf(theirRows))) refuse(`the two sides opened different rows at position ${position}`);
    comparePosition(profile, ourRows, theirRows, format, found);
  }
  if (!found.standards.length) refuse("no rows to compare: no verdict without numbers");
  if (!checksTokens) found.scores = [];
  return judgeRows(profile, found);
}

function comparePosition(profile, ourRows, theirRows, format, found) {
  const isScored = ourRows.some(({ kind }) => kind === ROW_KINDS.SCORES);
  let peak = null;
  for (const [at, { kind, layer, data }] of ourRows.entries()) {
    const threshold = profile.byRow.get(`${kind}.${layer}`);
    if (!threshold) refuse(`the profile has no threshold for row ${kind} of layer ${layer}`);
    const distance = computeLog2Distance(data, theirRows[at].data, rowFormat(kind, format));
    const standard = bigMax(floorDiv((distance - threshold.centre) << 16n, threshold.scale), STANDARD_FLOOR_Q16);
    const isLayer = kind === ROW_KINDS.K || kind === ROW_KINDS.V;
    found.standards.push(standard);
    found.isFullDepth ||= !isLayer;
    if (isScored && isLayer) found.output.push(standard);
    if (kind === ROW_KINDS.SCORES) found.scores.push([data, theirRows[at].data]);
    peak = peak === null ? standard : bigMax(peak, standard);
    found.distancePeak = found.distancePeak === null ? distance : bigMax(found.distancePeak, distance);
  }
  if (peak !== null) found.positionPeaks.push(peak);
}

const computeMean = (values) => floorDiv(values.reduce((sum, one) => sum + one, 0n), BigInt(values.length));

function judgeRows(profile, found) {
  const { standards, scores, positionPeaks } = found;
  if (scores.length && profile.tokens === null) refuse("the profile has no token limits");
  const tokens = scores.length ? checkTokens(profile.tokens, scores) : null;
  const positionCount = BigInt(positionPeaks.length);
  const limit = profile.means.findLast(
    (one) => one.isFull === (found.isFullDepth ? 1n : 0n) && one.positionCount <= positionCount,
  );
  const limits = {
    mean_match_max_q16: limit ? limit.match : profile.mean_match_max_q16,
    mean_mismatch_min_q16: limit ? limit.mismatch : profile.mean_mismatch_min_q16,
    peak_match_max_q16: profile.peak_match_max_q16,
    peak_mismatch_min_q16: profile.peak_mismatch_min_q16,
  };
  const trim = profile.routing === null ? 0 : Number((BigInt(standards.length) * profile.routing[0]) / 1000n);
  const ascending = [...standards].sort((one, other) => (one < other ? -1 : one > other ? 1 : 0));
  const mean = computeMean(ascending.slice(0, standards.length - trim));
  const peak = positionPeaks.reduce(bigMax);
  let outlierCount = 0n;
  let [isMismatch, isMatch] = [mean > limits.mean_mismatch_min_q16, mean <= limits.mean_match_max_q16];
  if (profile.routing === null) {
    isMismatch ||= peak > limits.peak_mismatch_min_q16;
    isMatch &&= peak <= limits.peak_match_max_q16;
  } else {
    const [, cut, rate] = profile.routing;
    outlierCount = BigInt(positionPeaks.filter((one) => one > cut).length);
    isMismatch ||= outlierCount > computeBinomialLimit(positionCount, rate, MISMATCH_TAIL);
    isMatch &&= outlierCount <= computeBinomialLimit(positionCount, rate, MATCH_TAIL);
  }
  let grade = limit ? BigInt(limit.grades.filter((one) => mean > one).length) : 0n;
  if (tokens) {
    isMismatch ||= tokens.isMismatch;
    isMatch &&= tokens.isMatch;
    grade = bigMax(grade, tokens.grade);
  }
  const exact = profile.exact_max_q16;
  return {
    verdict: isMismatch ? "mismatch" : isMatch ? "match" : "inconclusive",
    mean,
    peak,
    rowCount: BigInt(standards.length),
    distancePeak: found.distancePeak,
    positionCount,
    outlierCount,
    isTooExact: exact !== null && found.output.length > 0 && computeMean(found.output) < exact,
    grade,
    limits,
    tokens: tokens && tokens.message,
  };
}

// --- Merkle proofs (4.6) -----------------------------------------------------------------------------------------

const hashLeaf = (data) => sha256(Uint8Array.of(0), data);
const hashNode = (left, right) => sha256(Uint8Array.of(1), left, right);

/** The largest power of two below a size of at least 2. */
function splitSize(size) {
  let half = 1;
  while (half * 2 < size) half *= 2;
  return half;
}

/** RFC 9162 2.1.3.2, by recursion over the tree's shape instead of over the index's bits. */
export async function verifyInclusion(leafHash, index, size, proof, root) {
  verifyRange("size", size, 1n, INT64_MAX);
  verifyRange("leaf index", index, 0n, size - 1n);
  const path = [...proof];
  const climb = async (at, count) => {
    if (count === 1n) return leafHash;
    let half = 1n;
    while (half * 2n < count) half *= 2n;
    if (!path.length) refuse("inclusion proof is too short");
    const sibling = path.pop();
    return at < half
      ? hashNode(await climb(at, half), sibling)
      : hashNode(sibling, await climb(at - half, count - half));
  };
  const computed = await climb(index, size);
  if (path.length) refuse("inclusion proof is too long");
  if (!sameBytes(computed, root)) refuse(`inclusion proof of leaf ${index} leads to another root`);
}

/** RFC 9162 2.1.4.2: that the new tree only appended to the old one, again by the tree's shape. */
export async function verifyConsistency(oldSize, newSize, oldRoot, newRoot, proof) {
  verifyRange("new size", newSize, 0n, INT64_MAX);
  verifyRange("old size", oldSize, 0n, newSize);
  if (oldSize === 0n || oldSize === newSize) {
    if (proof.length) refuse("consistency proof between equal or from empty trees is not empty");
    if (oldSize === 0n && !sameBytes(oldRoot, await sha256(EMPTY))) refuse("the old tree is empty, its root is not");
    if (oldSize === newSize && !sameBytes(oldRoot, newRoot)) refuse(`two roots of one size ${newSize}`);
    return;
  }
  const path = [...proof];
  const take = () => path.pop() ?? refuse("consistency proof is too short");
  // Returns [old, new] of a subtree that the old size cuts, or ends in; isWhole while it is the old tree's left edge.
  const climb = async (old, count, isWhole) => {
    if (old === count) {
      const node = isWhole ? oldRoot : take();
      return [node, node];
    }
    let half = 1n;
    while (half * 2n < count) half *= 2n;
    const sibling = take();
    if (old <= half) {
      const [oldNode, newNode] = await climb(old, half, isWhole);
      return [oldNode, await hashNode(newNode, sibling)];
    }
    const [oldNode, newNode] = await climb(old - half, count - half, false);
    return [await hashNode(sibling, oldNode), await hashNode(sibling, newNode)];
  };
  const [oldNode, newNode] = await climb(oldSize, newSize, true);
  if (path.length) refuse("consistency proof is too long");
  if (!sameBytes(oldNode, oldRoot)) refuse(`consistency proof does not lead to the root of size ${oldSize}`);
  if (!sameBytes(newNode, newRoot)) refuse(`consistency proof does not lead to the root of size ${newSize}`);
}

/** That exactly these leaves, by ascending index, are in the tree (4.6.3). */
export async function verifyMultiproof(leaves, size, proof, root) {
  if (leaves.length === 0) refuse("a multiproof of no leaves proves nothing");
  verifyRange("size", size, 1, Number.MAX_SAFE_INTEGER);
  for (const [at, [index]] of leaves.entries()) {
    verifyRange("leaf index", index, 0, size - 1);
    if (at > 0 && leaves[at - 1][0] >= index) refuse("a leaf index is repeated, or they do not ascend");
  }
  if (proof.some((one) => one.length !== 32)) refuse("a digest has 32 bytes");
  const due = countMissing(leaves, 0, size, 0, leaves.length);
  if (proof.length !== due) refuse(`multiproof has ${proof.length} digests where ${due} are due`);
  let [nextProof, nextLeaf] = [0, 0];
  const climb = async (start, end) => {
    if (nextLeaf === leaves.length || leaves[nextLeaf][0] >= end) {
      nextProof += 1;
      return proof[nextProof - 1];
    }
    if (end - start === 1) {
      nextLeaf += 1;
      return leaves[nextLeaf - 1][1];
    }
    const middle = start + splitSize(end - start);
    const left = await climb(start, middle);
    return hashNode(left, await climb(middle, end));
  };
  const computed = await climb(0, size);
  invariant(nextProof === proof.length && nextLeaf === leaves.length, "every digest and leaf is used");
  if (!sameBytes(computed, root)) refuse("multiproof leads to another root");
}

/** How many subtrees of [start, end) hold none of leaves[first … last). */
function countMissing(leaves, start, end, first, last) {
  if (first === last) return 1;
  if (end - start === 1) return 0;
  const middle = start + splitSize(end - start);
  let cut = first;
  while (cut < last && leaves[cut][0] < middle) cut += 1;
  return countMissing(leaves, start, middle, first, cut) + countMissing(leaves, middle, end, cut, last);
}

// --- draws (6) ---------------------------------------------------------------------------------------------------

const WORD_VALUES = 2n ** 64n;

/** SHA256 over the seed's fields (6.1.1). */
export function computeSeed(tag, inputs) {
  return sha256(
    lp(
      ascii(`pocache/v1/${tag}`),
      inputs.network,
      inputs.chainHash,
      toUint(inputs.round, 8),
      inputs.randomness,
      inputs.root,
      toUint(inputs.leafCount, 8),
      inputs.jobId,
      toUint(inputs.stage, 4),
    ),
  );
}

/** An endless sequence of 64-bit words: SHAKE256("pocache/v1/xof" ‖ seed), big-endian (6.2). */
export class DeterministicStream {
  constructor(seed) {
    if (seed.length !== 32) refuse(`a stream's seed has 32 bytes, not ${seed.length}`);
    this.shake = new Shake256(concat(ascii("pocache/v1/xof"), seed));
    this.block = null;
    this.at = SHAKE256_RATE;
  }

  nextWord() {
    if (this.at === SHAKE256_RATE) [this.block, this.at] = [this.shake.nextBlock(), 0];
    this.at += 8;
    return this.block.getBigUint64(this.at - 8);
  }

  below(bound) {
    verifyRange("bound of a draw", bound, 1n, WORD_VALUES);
    const limit = WORD_VALUES - (WORD_VALUES % bound);
    for (;;) {
      const word = this.nextWord();
      if (word < limit) return word % bound;
    }
  }

  /** The same for a bound that a Number holds. */
  index(bound) {
    return Number(this.below(BigInt(bound)));
  }
}

export function isDrawn(stream, [numerator, denominator]) {
  verifyRange("denominator of a share", denominator, 1n, WORD_VALUES);
  verifyRange("numerator of a share", numerator, 0n, denominator);
  return stream.below(denominator) < numerator;
}

/** Floyd (6.3.2): that many distinct integers below a bound, ascending. */
export function drawSubset(stream, population, size) {
  verifyRange("size of a subset", size, 0, population);
  const chosen = new Set();
  for (let last = population - size; last < population; last += 1) {
    const candidate = stream.index(last + 1);
    chosen.add(chosen.has(candidate) ? last : candidate);
  }
  return [...chosen].sort(compareNumbers);
}

const fullCorner = (layerCount, leaves) => ({ layer_max: layerCount - 1, position_max: leaves - 1, full_depth: true });

export function drawCorner(stream, { layerCount, leaves, promptCount, fullShare }) {
  verifyRange("prompt count", promptCount, 1, leaves);
  if (isDrawn(stream, fullShare)) return fullCorner(layerCount, leaves);
  const layerMax = stream.index(layerCount);
  const positionMax = promptCount - 1 + stream.index(leaves - promptCount + 1);
  return { layer_max: layerMax, position_max: positionMax, full_depth: false };
}

export function drawPositions(stream, drawn, { promptCount, sampleCount }) {
  verifyRange("sample count", sampleCount, 1, L.SAMPLE_COUNT_MAX);
  verifyRange("prompt count", promptCount, 1, drawn.position_max + 1);
  const outputFirst = promptCount - 1;
  const positionCount = Math.min(sampleCount, drawn.position_max + 1);
  const outputs = drawn.position_max - outputFirst;
  const outputCount = Math.min(Math.ceil(positionCount / 2) - 1, outputs);
  const chosen = new Set(drawSubset(stream, outputs, outputCount).map((index) => outputFirst + index));
  chosen.add(drawn.position_max);
  const left = [];
  for (let position = 0; position < drawn.position_max; position += 1) if (!chosen.has(position)) left.push(position);
  for (const index of drawSubset(stream, left.length, positionCount - chosen.size)) chosen.add(left[index]);
  return [...chosen].sort(compareNumbers);
}

/** Sortition by stake without replacement (6.6.2): the plain walk over who is left. */
export function drawOrder(stream, stakes) {
  verifyRange("number of members", stakes.length, 0, L.MEMBERS_MAX);
  let total = 0n;
  for (const [at, [name, stake]] of stakes.entries()) {
    verifyRange("a stake", stake, 1n, L.MICRO_MAX);
    if (at > 0 && stakes[at - 1][0] >= name) refuse("stakes must be ascending by participant id, each once");
    total += stake;
  }
  verifyRange("sum of stakes", total, 0n, WORD_VALUES);
  const left = [...stakes];
  const order = [];
  while (left.length) {
    let ticket = stream.below(total);
    let at = 0;
    while (ticket >= left[at][1]) {
      ticket -= left[at][1];
      at += 1;
    }
    const [[name, stake]] = left.splice(at, 1);
    total -= stake;
    order.push(name);
  }
  return order;
}

// --- seats, stages and draws under either rule set (8) ------------------------------------------------------------

const TRIES = 3;
const [AUDIT_SEAT, RECHECK_SEAT, COMMITTEE_SEAT] = [1, 1 + TRIES, 1 + 2 * TRIES];

const getSeatMax = (rules) =>
  isCommittee(rules) ? COMMITTEE_SEAT - 1 + rules.committee_count * rules.committee_size : rules.stage_max;

function getPart(rules, seat) {
  verifyRange("seat", seat, AUDIT_SEAT, getSeatMax(rules));
  if (seat < RECHECK_SEAT) return "audit";
  return seat < COMMITTEE_SEAT ? "recheck" : "committee";
}

/** The number of the stage that a seat belongs to: a committee's is that of its first seat. */
function getStageOf(rules, seat) {
  if (!isCommittee(rules) || getPart(rules, seat) !== "committee") return seat;
  return seat - ((seat - COMMITTEE_SEAT) % rules.committee_size);
}

/** The number of the draw that fills a seat: one for all tries of a part, one for each committee. */
function getDrawOf(rules, seat) {
  if (!isCommittee(rules)) return seat;
  return { audit: AUDIT_SEAT, recheck: RECHECK_SEAT, committee: getStageOf(rules, seat) }[getPart(rules, seat)];
}

/** By which number a verifier is told of its seat: a recheck's cannot tell it from an audit's. */
function getToldStage(rules, seat) {
  if (!isCommittee(rules)) return seat;
  return getPart(rules, seat) === "committee" ? getStageOf(rules, seat) : AUDIT_SEAT;
}

const getSeatsOf = (rules, stageNumber) =>
  Array.from({ length: getPart(rules, stageNumber) === "committee" ? rules.committee_size : 1 }, (_, at) => stageNumber + at);
const getMajority = (rules) => Math.floor(rules.committee_size / 2) + 1;
const getDrawTag = (rules, draw) =>
  isCommittee(rules) && getPart(rules, draw) === "committee" ? "committee" : "verifiers";
const isRecheck = (rules, draw) => isCommittee(rules) && draw === RECHECK_SEAT;

/**
 * Who can be drawn and with which weight (6.6): nobody of an owner that has a part in the job, and no owner with more
 * than a share of what can be drawn. `stakes` and the result are [participant, stake], the result ascending.
 */
export function computeWeights(stakes, { owners, parties, excluded, shareMax: [numerator, denominator] }) {
  const ownerOf = (name) => owners.get(name) ?? name;
  const related = new Set(parties.map(ownerOf));
  const able = stakes
    .filter(([name]) => !related.has(ownerOf(name)) && !excluded.has(name))
    .sort(([one], [other]) => compareNumbers(one, other));
  const limit = bigMax(1n, (sum(able.map(([, stake]) => stake)) * numerator) / denominator);
  const sums = new Map();
  for (const [name, stake] of able) sums.set(ownerOf(name), (sums.get(ownerOf(name)) ?? 0n) + stake);
  return able.map(([name, stake]) => {
    const total = sums.get(ownerOf(name));
    return [name, total <= limit ? stake : bigMax(1n, (stake * limit) / total)];
  });
}

// --- prices and payoffs: unified-pool (9) -------------------------------------------------------------------------

const TREASURY = "treasury";
const TOKEN_PRICE_MAX = 10n ** 12n;

function computeGenerationCost(prices, promptCount, outputCount) {
  verifyRange("prompt_count", promptCount, 1, L.PROMPT_TOKENS_MAX);
  verifyRange("output_count", outputCount, 0, L.OUTPUT_TOKENS_MAX);
  return prices.prompt * BigInt(promptCount) + prices.output * BigInt(outputCount);
}

function computeVerificationCost(prices, layerMax, positionMax, layerCount) {
  verifyRange("layer_max", layerMax, 0, layerCount - 1);
  verifyRange("position_max", positionMax, 0, L.LEAF_COUNT_MAX - 1);
  return (prices.verify * BigInt(positionMax + 1) * BigInt(layerMax + 1)) / BigInt(layerCount);
}

/** ⌊αCg⌋, ⌊αCv⌋, ⌊βCg⌋, ⌊βCv⌋, each floored once (9.2). */
export function computeProducts(rules, cg, cv) {
  verifyRange("Cg", cg, 0n, L.MICRO_MAX);
  verifyRange("Cv", cv, 0n, L.MICRO_MAX);
  if (isCommittee(rules)) return computeCommitteeProducts(rules, cg, cv);
  const { alpha, beta } = rules;
  const products = { aCg: floorOf(alpha, cg), aCv: floorOf(alpha, cv), bCg: floorOf(beta, cg), bCv: floorOf(beta, cv) };
  products.deposit = products.aCg + products.aCv;
  if (products.deposit + products.bCg + BigInt(rules.stage_max) * products.bCv > L.MICRO_MAX) refuse("the pool is too large");
  return products;
}

const DECIDED_CASES = ["agree", "confirm_generator", "confirm_prior"];
const STAGE_RANGES = {
  no_challenge: [0, 0],
  agree: [1, 1],
  confirm_generator: [2, L.STAGE_COUNT_MAX],
  confirm_prior: [2, L.STAGE_COUNT_MAX],
  void: [0, L.STAGE_COUNT_MAX],
  no_opening: [0, L.STAGE_COUNT_MAX],
  equivocation: [0, L.STAGE_COUNT_MAX],
};

/**
 * Table 1 of the paper in integers (9.3): {payouts: Map account → amount, pool, slashed}. `ending` has case, cg, cv,
 * user, generator, verifiers [{participant, stage, opened}], deciding, prior. `rules`: alpha, beta, stage_max.
 */
export function settleUnifiedPool(rules, ending) {
  const products = computeProducts(rules, ending.cg, ending.cv);
  if (rules.stage_max >= 2 && products.bCg + products.bCv < products.aCv) refuse("β(Cg+Cv) ≥ αCv is violated");
  const standings = [...ending.verifiers].sort((one, other) => one.stage - other.stage);
  verifyStandings(rules, standings, ending);
  const k = BigInt(standings.length);
  const shares = listShares(products, standings, ending, k);
  const payouts = new Map();
  for (const [account, amount] of shares) {
    invariant(amount >= 0n, "a payout is negative");
    payouts.set(account, (payouts.get(account) ?? 0n) + amount);
  }
  const pool = products.deposit + products.bCg + k * products.bCv;
  invariant(sum([...payouts.values()]) === pool, "a settlement must empty its pool");
  for (const [account, amount] of payouts) if (amount === 0n) payouts.delete(account);
  return { payouts, pool, slashed: listSlashed(standings, ending) };
}

function verifyStandings(rules, standings, { case: ended, generator, deciding, prior }) {
  if (standings.some((one, at) => one.stage !== at + 1)) refuse("one verifier per stage from 1 on");
  if (standings.length > rules.stage_max) refuse(`stage ${standings.length} is beyond the last`);
  const names = standings.map((one) => one.participant);
  if (new Set([generator, ...names]).size !== names.length + 1) refuse("a verifier stands twice, or verifies itself");
  if (!Object.hasOwn(STAGE_RANGES, ended)) refuse(`unified-pool has no case ${ended}`);
  const [low, high] = STAGE_RANGES[ended];
  if (standings.length < low || standings.length > high) refuse(`case ${ended} cannot have ${standings.length} verifiers`);
  const opened = standings.filter((one) => one.opened).map((one) => one.participant);
  if (DECIDED_CASES.includes(ended)) {
    if (deciding !== names.at(-1) || !opened.includes(deciding)) refuse(`case ${ended}: the deciding verifier is the last`);
  } else if (deciding !== null) refuse(`case ${ended} has no deciding verifier`);
  if (ended === "confirm_prior") {
    if (prior === deciding || !opened.includes(prior)) refuse(`case ${ended}: the prior verifier stood earlier`);
  } else if (prior !== null) refuse(`case ${ended} has no prior verifier`);
}

function listShares({ aCg, aCv, bCg, bCv, deposit }, standings, { case: ended, user, generator, prior }, k) {
  const last = standings.at(-1)?.participant;
  const opened = standings.filter((one) => one.opened).map((one) => one.participant);
  switch (ended) {
    case "no_challenge":
      return [[generator, aCg + bCg], [user, aCv]];
    case "agree":
    case "confirm_generator":
      return [[generator, aCg + bCg], [last, aCv + k * bCv]];
    case "confirm_prior":
      return [[user, deposit], [prior, aCv + bCv], [last, bCg + (k - 1n) * bCv - aCv]];
    case "void":
      return [[user, deposit], [generator, bCg], ...standings.map((one) => [one.opened ? one.participant : user, bCv])];
    case "no_opening": {
      const forfeited = bCg + (k - BigInt(opened.length)) * bCv;
      if (!opened.length) return [[user, deposit], [user, forfeited]];
      const part = forfeited / BigInt(opened.length);
      const rest = forfeited % BigInt(opened.length);
      return [[user, deposit], ...opened.map((name) => [name, bCv + part]), [opened[0], rest]];
    }
    default:
      return [[user, deposit], [TREASURY, bCg], ...standings.map((one) => [one.participant, bCv])];
  }
}

function listSlashed(standings, { case: ended, generator, deciding, prior }) {
  const slashed = ["confirm_prior", "no_opening", "equivocation"].includes(ended) ? [generator] : [];
  const isLost = (one) =>
    DECIDED_CASES.includes(ended) ? one.participant !== deciding && one.participant !== prior : !one.opened;
  if (ended === "equivocation") return slashed;
  return [...slashed, ...standings.filter(isLost).map((one) => one.participant)];
}

// --- payoffs: fixed-fee-committee (9) ------------------------------------------------------------------------------

const RESERVE = "reserve";
const getPaidMax = (rules) => BigInt(2 + rules.committee_count * rules.committee_size);

/** Every product floored once; the deposit is αCg + αCv + λCv. */
function computeCommitteeProducts(rules, cg, cv) {
  const products = {
    aCg: floorOf(rules.alpha, cg),
    aCv: floorOf(rules.alpha, cv),
    levy: floorOf(rules.levy, cv),
    bCg: floorOf(rules.beta_generator, cg),
    bCv: floorOf(rules.beta_verifier, cv),
    fee: floorOf(rules.phi, cv),
    bounty: floorOf(rules.bounty, cg),
    bonus: floorOf(rules.bonus, cg),
  };
  products.deposit = products.aCg + products.aCv + products.levy;
  const most = products.deposit + products.bCg + BigInt(getSeatMax(rules)) * products.bCv + getPaidMax(rules) * products.fee;
  if (most > L.MICRO_MAX) refuse("the pool is too large");
  return products;
}

/**
 * The rows of docs/economics.md 5.3: {payouts, pool, slashed, drawn}. `ending` has besides what the paper's rules take
 * upheld of each verifier, isChallenged, and what the reserve holds.
 */
export function settleCommittee(rules, ending) {
  const products = computeCommitteeProducts(rules, ending.cg, ending.cv);
  const most = getPaidMax(rules) * products.fee + products.bounty + products.bonus;
  if (most >= products.bCg) refuse("fees + bounty + bonus < βCg is violated");
  const seats = [...ending.verifiers].sort((one, other) => one.stage - other.stage);
  verifyCommitteeSeats(rules, seats, ending);
  verifyCommitteeCase(rules, seats, ending);
  const row = settleRow(rules, seats, ending, products);
  const drawn = bigMax(0n, -row.balance);
  const pool = products.deposit + products.bCg + BigInt(seats.length) * products.bCv + drawn;
  const payouts = new Map();
  for (const [account, amount] of [...row.shares, [RESERVE, bigMax(0n, row.balance)]]) {
    invariant(amount >= 0n, "a payout is negative");
    payouts.set(account, (payouts.get(account) ?? 0n) + amount);
  }
  invariant(sum([...payouts.values()]) === pool, "a settlement must empty its pool");
  for (const [account, amount] of payouts) if (amount === 0n) payouts.delete(account);
  return { payouts, pool, slashed: row.slashed, drawn };
}

function settleRow(rules, seats, ending, products) {
  const { aCg, aCv, levy, bCg, bCv, fee, bounty, deposit } = products;
  const { case: ended, user, generator, prior, isChallenged, reserve } = ending;
  const isPaidRow = ["no_challenge", "agree", "acquittal"].includes(ended);
  const isPaid = (one) => one.opened && (one.upheld || ended === "void" || ended === "no_opening");
  const [paid, lost] = [seats.filter(isPaid), seats.filter((one) => !isPaid(one))];
  const lostNames = lost.map((one) => one.participant);
  const forfeited = BigInt(lost.length) * bCv;
  const share = (amount) => paid.map((one) => [one.participant, bCv + amount]);
  if (ended === "equivocation") {
    const stakes = seats.map((one) => [one.participant, bCv]);
    return { shares: [[user, deposit], [TREASURY, bCg], ...stakes], balance: 0n, slashed: [generator] };
  }
  if (isPaidRow || ended === "void") {
    const members = isPaidRow ? paid.filter((one) => getPart(rules, one.stage) === "committee").length : paid.length;
    const fromForfeits = bigMin(forfeited, BigInt(members) * fee);
    const income = isPaidRow ? levy + (isChallenged ? aCv : 0n) : 0n;
    const [paidFee, balance] = payFees(BigInt(paid.length), fee, fromForfeits + income, reserve);
    const main = isPaidRow ? [[generator, aCg + bCg], [user, isChallenged ? 0n : aCv]] : [[user, deposit], [generator, bCg]];
    return { shares: [...main, ...share(paidFee), [TREASURY, forfeited - fromForfeits]], balance, slashed: lostNames };
  }
  const bonus = prior === null ? 0n : products.bonus;
  const rest = bCg - BigInt(paid.length) * fee - bounty - bonus;
  const shares = [[user, deposit + bounty], ...share(fee), [TREASURY, rest + forfeited]];
  if (prior !== null) shares.push([prior, bonus]);
  return { shares, balance: 0n, slashed: [generator, ...lostNames] };
}

/** The fee that can be paid so often, and what the reserve gains by it; a reserve that is too short pays all alike less. */
function payFees(count, fee, income, reserve) {
  const paid = count * fee > income + reserve ? (income + reserve) / count : fee;
  return [paid, income - count * paid];
}

function verifyCommitteeSeats(rules, seats, { generator }) {
  if (new Set(seats.map((one) => one.stage)).size !== seats.length) refuse("two verifiers in one seat");
  for (const one of seats) {
    getPart(rules, one.stage);
    if (one.upheld && !one.opened) refuse(`${one.participant} did not open: no outcome bears its claim out`);
  }
  for (const part of ["audit", "recheck"]) {
    if (seats.filter((one) => one.opened && getPart(rules, one.stage) === part).length > 1) refuse(`two have opened in the ${part}`);
  }
  const names = new Set([generator, ...seats.map((one) => one.participant)]);
  if (names.size !== seats.length + 1) refuse("a verifier stands twice, or verifies itself");
}

function verifyCommitteeCase(rules, seats, { case: ended, deciding, prior, isChallenged }) {
  if (["confirm_generator", "confirm_prior"].includes(ended)) refuse(`${FIXED_FEE_COMMITTEE} has no case ${ended}`);
  const upheld = seats.filter((one) => one.upheld);
  const members = seats.filter((one) => getPart(rules, one.stage) === "committee").map((one) => one.stage);
  if (ended === "no_challenge" && (seats.length || isChallenged)) refuse(`case ${ended} has no verifiers and no challenge`);
  const opened = seats.filter((one) => one.opened).length;
  if (ended === "agree" && (members.length || !upheld.length || upheld.length !== opened)) {
    refuse(`case ${ended}: whoever opened agreed, and no committee was called`);
  }
  if (ended === "acquittal" || ended === "conviction") {
    const last = members.map((seat) => getStageOf(rules, seat)).reduce((one, other) => Math.max(one, other), 0);
    const count = upheld.filter((one) => getStageOf(rules, one.stage) === last).length;
    if (count < getMajority(rules)) refuse(`case ${ended}: the last committee bears it out by ${count}`);
  } else if (ended !== "agree" && upheld.length) refuse(`case ${ended} bears nobody's claim out`);
  if (deciding !== null) refuse(`${FIXED_FEE_COMMITTEE} has no deciding verifier`);
  const finders = upheld.filter((one) => getPart(rules, one.stage) !== "committee").map((one) => one.participant);
  if (prior !== null && (ended !== "conviction" || !finders.includes(prior))) refuse(`case ${ended} has no such finder`);
}

// --- the receipt's two forms (14.1) -------------------------------------------------------------------------------

const KIND = "receipt.v1";
const LISTS = ["record", "rounds", "snapshots", "epochs"];
const FIELDS = ["kind", "genesis", "model", ...LISTS, "log"];
const LOG_FIELDS = ["checkpoint", "inclusion", "latest", "consistency"];

/** The receipt that these bytes are, in its one canonical spelling. */
export function decodeReceipt(data) {
  const isJson = data[0] === 0x7b;
  const bytesMax = isJson ? L.RECEIPT_TEXT_BYTES_MAX : L.RECEIPT_BYTES_MAX;
  if (data.length > bytesMax) refuse(`a receipt of ${data.length} bytes exceeds ${bytesMax}`);
  const value = isJson ? readJson(data, bytesMax) : decodeMsgpack(data, bytesMax);
  if (!(value instanceof Map) || typeof value.get("kind") !== "string") refuse("not a receipt: no map with a field kind");
  if (value.get("kind") !== KIND) refuse(`the receipt is of kind ${value.get("kind").slice(0, 64)}; this reads ${KIND}`);
  verifyFields(value, FIELDS, "a receipt");
  const receipt = readReceipt(value, isJson ? JSON_FORM : BINARY_FORM);
  if (receipt.genesis.length > L.GENESIS_BYTES_MAX) refuse(`a genesis of ${receipt.genesis.length} bytes`);
  if (receipt.genesis.some((byte) => byte > 0x7f)) refuse("genesis: ASCII is expected");
  const isCanonical = isJson ? writeJson(value) === decodeUtf8(data) : sameBytes(writeBinary(receipt), data);
  if (!isCanonical) refuse("the receipt is not in its one canonical spelling");
  return receipt;
}

function verifyFields(value, fields, what) {
  const isExact = value instanceof Map && value.size === fields.length && fields.every((name) => value.has(name));
  if (!isExact) refuse(`${what} has exactly the fields ${fields.join(", ")}`);
}

function readReceipt(value, form) {
  const readList = (name, list, read) => {
    expect(Array.isArray(list), `${name}: a list`);
    if (list.length > L.RECEIPT_ENVELOPES_MAX) refuse(`${name}: ${list.length} elements`);
    return list.map((one) => read(one, name));
  };
  const readDigests = (name, list) => {
    const digests = readList(name, list, form.digest);
    if (digests.length > L.PROOF_DIGESTS_MAX) refuse(`${name}: ${digests.length} digests`);
    if (digests.some((one) => one.length !== 32)) refuse(`${name}: digests of 32 bytes are expected`);
    return digests;
  };
  const log = value.get("log");
  const isCosigned = log instanceof Map && log.has("cosigned");
  if (log !== null) verifyFields(log, isCosigned ? [...LOG_FIELDS, "cosigned"] : LOG_FIELDS, "log");
  const cosigned = isCosigned ? form.bytes(log.get("cosigned"), "log.cosigned") : EMPTY;
  if (isCosigned && !cosigned.length) refuse("log.cosigned is left out where nobody cosigned");
  return {
    genesis: form.genesis(value.get("genesis")),
    model: form.bytes(value.get("model"), "model"),
    ...Object.fromEntries(LISTS.map((name) => [name, readList(name, value.get(name), form.bytes)])),
    log: log && {
      checkpoint: form.bytes(log.get("checkpoint"), "log.checkpoint"),
      inclusion: readDigests("log.inclusion", log.get("inclusion")),
      latest: form.bytes(log.get("latest"), "log.latest"),
      consistency: readDigests("log.consistency", log.get("consistency")),
      cosigned,
    },
  };
}

const readPlainBytes = (value, name) => {
  expect(value instanceof Uint8Array, `${name}: bytes`);
  return value;
};

const BINARY_FORM = { genesis: readPlainBytes, bytes: readPlainBytes, digest: readPlainBytes };

const JSON_FORM = {
  genesis: (value) => {
    expect(typeof value === "string" && value.isWellFormed(), "genesis: a text");
    return UTF8.encode(value);
  },
  bytes: fromBase64,
  digest: (value) => fromHex(value),
};

const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE64_VALUES = new Map([...BASE64].map((character, value) => [character.charCodeAt(0), value]));

/** Base64 with padding, and no loose bits at its end: one spelling for each sequence of bytes. */
function fromBase64(text, name) {
  const isFormed = typeof text === "string" && text.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(text);
  expect(isFormed, `${name}: base64`);
  const characters = text.endsWith("==") ? text.length - 2 : text.endsWith("=") ? text.length - 1 : text.length;
  const data = new Uint8Array((text.length / 4) * 3 - (text.length - characters));
  let [bits, count, at] = [0, 0, 0];
  for (let index = 0; index < characters; index += 1) {
    bits = ((bits << 6) | BASE64_VALUES.get(text.charCodeAt(index))) & 0xffff;
    count += 6;
    if (count >= 8) {
      count -= 8;
      data[at] = (bits >> count) & 0xff;
      at += 1;
    }
  }
  if (bits & ((1 << count) - 1)) refuse(`${name}: base64 with loose bits`);
  return data;
}

/** Keys ascending, no spaces, ASCII, one line feed at the end; all texts but the genesis are plain by now. */
function writeJson(value) {
  const quote = (text) => JSON.stringify(text).replaceAll("\x7f", "\\u007f"); // the one unprintable that it leaves
  const write = (one) => {
    if (one === null) return "null";
    if (typeof one === "string") return quote(one);
    if (Array.isArray(one)) return `[${one.map(write).join(",")}]`;
    const names = [...one.keys()].sort();
    return `{${names.map((name) => `${quote(name)}:${write(one.get(name))}`).join(",")}}`;
  };
  return `${write(value)}\n`;
}

function writeBinary({ genesis, model, record, rounds, snapshots, epochs, log }) {
  const { checkpoint, inclusion, latest, consistency, cosigned } = log ?? {};
  const proofs = log && { checkpoint, inclusion, latest, consistency, ...(cosigned.length ? { cosigned } : {}) };
  return encodeMsgpack({ kind: KIND, genesis, model, record, rounds, snapshots, epochs, log: proofs });
}

// --- the job under examination ------------------------------------------------------------------------------------

/** A value that is computed when somebody first asks: the step that asks is the one that fails. */
function once(compute) {
  let result;
  return () => (result ??= compute());
}

async function openModel(data, network) {
  const { body: entry, sender } = await openEnvelope(data, network, "model-entry.v1");
  const schema = readRowSchema(readModelJson(entry.row_schema));
  if (schema.layer_count !== entry.layer_count) refuse(`${entry.layer_count} layers, but rows of ${schema.layer_count}`);
  const profile = readProfile(readModelJson(entry.profile));
  const prices = {
    prompt: entry.prompt_token_micro,
    output: entry.output_token_micro,
    verify: entry.verify_token_micro,
  };
  for (const [name, price] of Object.entries(prices)) verifyRange(`price of a ${name} token`, price, 0n, TOKEN_PRICE_MAX);
  const [profileDigest, profileSet] = await computeProfileDigests(profile);
  return { entry, sender, schema, schemaDigest: await computeSchemaDigest(schema), profile, profileDigest, profileSet, prices };
}

class Case {
  constructor(parts) {
    Object.assign(this, parts);
    this.randomness = new Map();
    this.roundMessages = [];
    this.comparisons = new Map();
    this.parts = new Map();
    this.submission = once(() => openEnvelope(this.admitted.submission, this.network, "submission.v1"));
    this.result = once(() => openEnvelope(this.recorded.result, this.network, "result.v1"));
    this.lease = once(async () => openEnvelope((await this.result()).body.lease, this.network, "lease.v1"));
    this.prompt = once(async () => unpackTokens((await this.submission()).body.prompt));
    this.output = once(async () => unpackTokens((await this.result()).body.output));
  }

  get chain() {
    return this.genesis.beaconChain;
  }

  get admitted() {
    return this.dossier.get("job-admitted.v1");
  }

  get jobId() {
    return this.admitted.job_id;
  }

  get isCommitted() {
    return this.dossier.all("commitment-recorded.v1").length > 0;
  }

  get recorded() {
    return this.dossier.get("commitment-recorded.v1");
  }

  get audit() {
    return this.dossier.find("audit-opened.v1");
  }

  get outcome() {
    return this.dossier.find("outcome.v1");
  }

  get isEquivocated() {
    return this.dossier.all("equivocation.v1").length > 0;
  }

  async fullCorner() {
    return fullCorner(this.model.schema.layer_count, (await this.result()).body.leaf_count);
  }

  /** A round's randomness; its signature is checked in form here, and by the pairing in R8.pairing. */
  async getRandomness(number) {
    const known = this.randomness.get(number);
    if (known) return known;
    const round = this.rounds.get(number);
    if (!round) refuse(`round ${number} is not shown`);
    if (!sameBytes(round.chain_hash, this.chain.hash)) refuse(`round ${number} is of another chain`);
    const message = await computeRoundMessage(this.chain, number, round.previous_signature);
    verifyPointForm(round.signature, this.chain.scheme.onG1, "signature");
    this.roundMessages.push({ number, message, signature: round.signature });
    const randomness = await sha256(round.signature);
    this.randomness.set(number, randomness);
    return randomness;
  }

  /** The stream of one draw about this commitment (6.1). */
  async openStream(tag, round, stageNumber) {
    const { body } = await this.result();
    const seed = await computeSeed(tag, {
      network: this.network,
      chainHash: this.chain.hash,
      round,
      randomness: await this.getRandomness(round),
      root: body.root,
      leafCount: body.leaf_count,
      jobId: this.jobId,
      stage: stageNumber,
    });
    return new DeterministicStream(seed);
  }
}

// --- steps R4 to R7: asked for, leased, committed, logged ---------------------------------------------------------

const NO_COMMITMENT = "no generator committed to a result";
const NO_AUDIT = "the job was not audited";

function computeLeafCount(promptCount, outputCount) {
  verifyRange("tokens of the prompt", promptCount, 1, L.PROMPT_TOKENS_MAX);
  verifyRange("tokens of the output", outputCount, 1, L.OUTPUT_TOKENS_MAX);
  return promptCount + outputCount - 1;
}

function computeFullCv(job, leaves) {
  const layers = job.model.schema.layer_count;
  return computeVerificationCost(job.model.prices, layers - 1, leaves - 1, layers);
}

const hashTokens = (salt, tokens) => {
  unpackTokens(tokens);
  return sha256(lp(ascii("pocache/v1/tokens"), salt, tokens));
};

const maxOf = (numbers) => numbers.reduce((one, other) => Math.max(one, other), -Infinity);

/** What the longest output costs: Cg, Cv and the products of both. */
async function computeLongest(job) {
  const { body } = await job.submission();
  const count = (await job.prompt()).length;
  const cg = computeGenerationCost(job.model.prices, count, body.token_count_max);
  const cv = computeFullCv(job, computeLeafCount(count, body.token_count_max));
  return { cg, cv, products: computeProducts(job.genesis.rules, cg, cv) };
}

async function checkSubmission(job, found) {
  const { id, sender, body } = await job.submission();
  const { admitted, dossier, genesis, model, trust } = job;
  found.equal("the job id, the id of the submission's envelope", admitted.job_id, id);
  found.equal("who signed the submission", admitted.user, sender);
  found.equal("who signed the model's entry", model.sender, genesis.signers.operator);
  found.equal("the model that was asked for", body.model_id, model.entry.model_id);
  if (trust.profiles.length) {
    const digest = toHex(model.profileDigest);
    found.holds("the calibration profile", trust.profiles.includes(digest), digest, "one of the pinned profiles");
  }
  const prompt = await job.prompt();
  found.holds("tokens of the prompt", prompt.length >= 1, prompt.length, "at least 1");
  const largest = maxOf(prompt);
  found.holds("its largest token", largest < model.entry.vocab_size, largest, `below ${model.entry.vocab_size}`);
  const total = prompt.length + body.token_count_max;
  const limit = model.entry.context_tokens_max;
  found.holds("prompt and longest output", total <= limit, total, `at most ${limit} tokens`);
  const { cg, cv, products } = await computeLongest(job);
  found.equal("Cg of the longest output, micro-units", admitted.generation_max_micro, cg);
  found.equal("Cv of it at full depth", admitted.verification_max_micro, cv);
  const asked = dossier.get(ROUTER_HOLDS, { purpose: "escrow" });
  found.equal("who the deposit was asked of", asked.party, admitted.user);
  found.equal("the deposit that was asked for", asked.amount_micro, products.deposit);
  if (dossier.isRefused) {
    const refused = dossier.get("hold-refused.v1", { purpose: "escrow" });
    found.equal("whose deposit was refused", refused.party, admitted.user);
    found.note("why the deposit was refused", `${refused.code}: ${refused.reason}`);
    return;
  }
  const held = dossier.get("hold-placed.v1", { purpose: "escrow" });
  found.equal("the deposit that is held", [held.party, held.amount_micro], [asked.party, asked.amount_micro]);
}

async function checkLease(job, found) {
  checkAttempts(job, found);
  if (!job.isCommitted) {
    found.equal("epochs, which a job without a commitment does not need", job.epochs.length, 0);
    return found.skip(NO_COMMITMENT);
  }
  const { sender, body } = await job.lease();
  const { body: submission } = await job.submission();
  const { model, admitted } = job;
  const prompt = await job.prompt();
  found.equal("who signed the lease", sender, job.genesis.signers.router);
  found.equal("its job", body.job_id, job.jobId);
  found.equal("its user", body.user, admitted.user);
  found.equal("its model", body.model_id, submission.model_id);
  found.equal("its salt", body.salt, submission.salt);
  found.equal("its hash of the prompt", body.prompt_hash, await hashTokens(submission.salt, submission.prompt));
  found.equal("its count of the prompt's tokens", body.prompt_count, prompt.length);
  found.equal("its longest output", body.token_count_max, submission.token_count_max);
  found.equal("its sampling", body.sampling, submission.sampling);
  found.equal("whether it ends at an end of sequence", body.eos_stop, submission.eos_stop);
  found.equal("its row schema", body.schema_digest, model.schemaDigest);
  found.equal("its set of profiles", body.profile_set, model.profileSet);
  const { products } = await computeLongest(job);
  const holder = { purpose: "generator_stake", attempt: body.attempt, party: body.generator };
  const held = job.dossier.get("hold-placed.v1", holder);
  found.equal("the stake that the generator put up, βCg of the longest output", held.amount_micro, products.bCg);
  return checkSeed(job, found, body.seed, submission);
}

/** Each attempt before the committed one was closed by the store, and charged for by the router (10.6). */
function checkAttempts(job, found) {
  const listAttempts = (kind) => job.dossier.all(kind).map((one) => one.attempt).sort(compareNumbers);
  const closed = listAttempts("attempt-closed.v1");
  found.equal("attempts that were closed, and charged for", closed, listAttempts("attempt-charged.v1"));
  const stakes = job.dossier.all("hold-placed.v1").filter((one) => one.purpose === "generator_stake");
  const held = new Set(stakes.map((one) => `${one.attempt} ${one.party}`));
  const unheld = job.dossier
    .all("attempt-charged.v1")
    .filter((one) => !held.has(`${one.attempt} ${one.generator}`))
    .map((one) => one.attempt)
    .sort(compareNumbers);
  found.equal("attempts that were charged for, and whose stake was never held", unheld, []);
  const before = job.isCommitted ? job.recorded.attempt - 1 : closed.length;
  const expected = Array.from({ length: before }, (_, at) => at + 1);
  found.equal("attempts that ended without a commitment", closed, expected);
}

async function checkSeed(job, found, seed, submission) {
  if (submission.seed !== null) {
    const expected = await sha256(lp(ascii("pocache/v1/user-seed"), submission.seed));
    found.equal("the sampling seed, of the user's own", seed, expected);
    found.equal("epochs, which a seed of the user's own does not need", job.epochs.length, 0);
    return;
  }
  for (const [at, epoch] of job.epochs.entries()) {
    const following = job.epochs[at + 1];
    if (!following || following.previous_key === null || following.number !== epoch.number + 1n) continue;
    if (!sameBytes(await sha256(following.previous_key), epoch.key_hash)) continue;
    const derived = await hmacSha256(following.previous_key, lp(ascii("pocache/v1/epoch-seed"), job.jobId));
    if (sameBytes(derived, seed)) {
      found.note("the sampling seed, of the published key of epoch", epoch.number);
      return;
    }
  }
  const shown = job.epochs.map((epoch) => epoch.number);
  found.holds("the epoch of the sampling seed", shown.length > 0, shown, "announced before the seed was issued");
  // The last epoch shown has no published key, so there is always one that the seed may be of.
  found.leaveOpen(`the key of epoch ${shown.at(-1)} is not published here: the seed cannot be computed yet`);
}

async function checkCommitment(job, found) {
  if (!job.isCommitted) return found.skip(NO_COMMITMENT);
  const { recorded, chain, model } = job;
  const { body: lease } = await job.lease();
  const { body: result, sender } = await job.result();
  found.equal("who signed the result", sender, recorded.generator);
  found.equal("who held the lease", lease.generator, recorded.generator);
  found.equal("job and attempt of the result", [result.job_id, result.attempt], [job.jobId, recorded.attempt]);
  found.equal("attempt of the lease", lease.attempt, recorded.attempt);
  await checkOutput(job, found, lease, result);
  const leaves = computeLeafCount((await job.prompt()).length, (await job.output()).length);
  found.equal("N, the leaves", result.leaf_count, leaves);
  found.equal("the numeric stack", result.stack, model.entry.stack);
  found.equal("the binding digest", result.binding, await computeBinding(job, lease, result));
  const late = recorded.received_ms - lease.deadline_ms;
  found.holds("when it came, ms after the lease's deadline", late <= 0n, late, "at most 0");
  const lag = computeRoundAt(chain, recorded.received_ms) - result.latest_round;
  const lagMax = BigInt(job.genesis.audit.commitment_lag_rounds_max);
  found.holds("age of the round that it names, in rounds", lag >= 0n && lag <= lagMax, lag, `0 … ${lagMax}`);
  const waited = recorded.recorded_ms - recorded.received_ms;
  found.holds("ms from its arrival to its entry", waited >= 0n, waited, "at least 0");
  return undefined;
}

async function checkOutput(job, found, lease, result) {
  const output = await job.output();
  const { entry } = job.model;
  const isWithin = output.length >= 1 && output.length <= lease.token_count_max;
  found.holds("tokens of the output", isWithin, output.length, `1 … ${lease.token_count_max}`);
  const largest = maxOf(output);
  found.holds("its largest token", largest < entry.vocab_size, largest, `below ${entry.vocab_size}`);
  const isStop = (token) => lease.eos_stop && entry.eos_tokens.includes(BigInt(token));
  const stops = [...output.keys()].filter((index) => isStop(output[index]));
  const last = output.length - 1;
  found.holds("ends of sequence in it, by index", stops.every((index) => index === last), stops, `none, or ${last} alone`);
  const reason = result.finish_reason;
  if (!stops.length && reason !== "cancelled") {
    found.equal("its length, without an end of sequence", output.length, lease.token_count_max);
  }
  const isFull = output.length === lease.token_count_max;
  found.equal("how it ended", reason, stops.length ? "stop" : isFull ? "length" : "cancelled");
  await checkCancellation(job, found, result);
}

async function checkCancellation(job, found, result) {
  const isCarried = result.cancellation !== null;
  found.equal("whether it carries a cancellation", isCarried, result.finish_reason === "cancelled");
  if (!isCarried) return;
  const opened = await openEnvelope(result.cancellation, job.network, "cancel-request.v1");
  found.equal("who cancelled it", opened.sender, job.admitted.user);
  found.equal("the job that was cancelled", opened.body.job_id, job.jobId);
}

async function computeBinding(job, lease, result) {
  expect(result.stack.length > 0 && UTF8.encode(result.stack).length <= L.TEXT_CHARS_MAX, "a stack of 1 … 4096 bytes");
  const { temperature_micro: temperature, top_k: topK, top_p_micro: topP } = lease.sampling;
  const numbers = [temperature, topK, topP].map((number) => toUint(number, 8));
  const fields = [
    ascii("pocache/v1/binding"),
    job.network,
    job.jobId,
    toUint(lease.attempt, 4),
    (await job.lease()).id,
    lease.prompt_hash,
    await hashTokens(lease.salt, result.output),
    lease.model_id,
    UTF8.encode(result.stack),
    await sha256(lp(ascii("pocache/v1/sampling")), ...numbers),
    lease.seed,
    lease.schema_digest,
    lease.profile_set,
  ];
  return sha256(lp(...fields));
}

async function checkLog(job, found) {
  if (!job.isCommitted) return found.skip(NO_COMMITMENT);
  const { recorded, log } = job;
  found.holds("the log's proofs", log !== null, log !== null, "shown");
  const { entry, latest } = log;
  const { body: result, id } = await job.result();
  found.equal("size of the log with this entry", entry.size, recorded.log_index + 1n);
  found.equal("when that checkpoint was made, ms", entry.at_ms, recorded.recorded_ms);
  const leaf = lp(
    ascii("pocache/v1/log-leaf"),
    result.job_id,
    toUint(result.attempt, 4),
    result.root,
    toUint(result.leaf_count, 8),
    result.binding,
    id,
  );
  await verifyInclusion(await hashLeaf(leaf), recorded.log_index, entry.size, log.inclusion, entry.root);
  found.note("root that the inclusion proof leads to", entry.root);
  await verifyConsistency(entry.size, latest.size, entry.root, latest.root, log.consistency);
  found.note("size of the log that this one was only appended to", latest.size);
  for (const checkpoint of [entry, latest]) if (checkpoint.note.length) await verifyCheckpointNote(job, checkpoint);
  await checkWitnesses(job, found);
  checkBindingOfRound(job, found);
  return undefined;
}

/** A checkpoint's note says what the checkpoint says, and is signed by the log alone (4.10). */
async function verifyCheckpointNote({ network, genesis }, checkpoint) {
  const note = parseNote(checkpoint.note);
  const origin = `pocache/${toHex(network)}/commitments`;
  const keyHash = await computeKeyHash(origin, NOTE_TYPES.ed25519, genesis.signers.commitments);
  const [line] = note.signatures;
  if (note.signatures.length !== 1) refuse("the checkpoint's note has other signatures than the log's");
  if (line.name !== origin || !sameBytes(line.keyHash, keyHash)) refuse(`the note is not signed by ${origin}`);
  await verifySignature(genesis.signers.commitments, note.text, line.signature);
  if (note.origin !== origin) refuse(`the checkpoint is of another log, ${note.origin.slice(0, 128)}`);
  if (note.size !== checkpoint.size || !sameBytes(note.root, checkpoint.root)) refuse("the checkpoint's note says otherwise");
}

/** Every witness's line in its one spelling, and enough of those that the user pins. */
async function checkWitnesses(job, found) {
  const { log, network, genesis, trust } = job;
  const cosigners = [];
  if (log.cosigned.length) {
    const lines = await findCosigners(network, parseNote(log.cosigned), genesis.witnesses);
    let expected = EMPTY;
    if (log.latest.note.length && lines.size) {
      const own = parseNote(log.latest.note);
      const sorted = [...lines.values()].sort((one, other) => compareText(one.name, other.name));
      expected = concat(own.text, ascii("\n"), ...[own.signatures[0], ...sorted].map(writeSignatureLine));
    }
    found.equal("the cosigned note, in its one spelling", log.cosigned, expected);
    cosigners.push(...lines.keys());
    found.note("witnesses who cosigned the log", cosigners.length);
  }
  if (trust.witnesses.length) {
    const counted = trust.witnesses.filter((name) => cosigners.includes(name)).length;
    const quorum = trust.witness_quorum;
    found.holds("cosignatures of the witnesses that you pinned", counted >= quorum, counted, `at least ${quorum}`);
  }
}

/** The audit's round was to come when it was named, each time that one was (5.4, 4.8.4). */
function checkBindingOfRound(job, found) {
  const { recorded, chain } = job;
  const current = computeRoundAt(chain, recorded.recorded_ms);
  const windowClose = bigMax(current + BigInt(job.genesis.audit.window_rounds), recorded.audit_round + 1n);
  found.equal("last round of the window", recorded.window_close_round, windowClose);
  checkBound(job, found, "the round that decides on the audit", recorded.audit_round, recorded.recorded_ms);
  let [previous, closeRound] = [recorded.audit_round, recorded.window_close_round];
  const rebounds = [...job.dossier.all("commitment-rebound.v1")];
  for (const rebound of rebounds.sort((one, other) => compareNumbers(one.missed_round, other.missed_round))) {
    found.equal("the round that came too early", rebound.missed_round, previous);
    checkBound(job, found, "the round that decides instead", rebound.audit_round, rebound.rebound_ms);
    closeRound = bigMax(closeRound, rebound.audit_round + 1n);
    found.equal("last round of the window then", rebound.window_close_round, closeRound);
    previous = rebound.audit_round;
  }
}

/** A round was still to come, by Δ, when an event was bound to it (5.4). */
function checkBound(job, found, what, number, time) {
  const first = bindRound(job.chain, time, job.genesis.audit.bind_delay_ms);
  found.holds(what, number >= first, number, `${first} or later`);
  found.note("ms from the event to that round", computeRoundTime(job.chain, number) - time);
}

// --- signed notes of the log (4.10; C2SP signed-note, tlog-checkpoint, tlog-cosignature) --------------------------

const NOTE_TYPES = { ed25519: 1, cosignature: 4 };
const DASH = "\u2014 ";
/** What Python's isspace() names, beside the control characters, which no note has. */
const SPACES = /[ \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/;

/** The checkpoint in a note, no signature verified: {origin, size, root, text, signatures}. */
export function parseNote(data) {
  if (data.length > L.NOTE_BYTES_MAX) refuse(`a note of ${data.length} bytes exceeds ${L.NOTE_BYTES_MAX}`);
  const text = decodeUtf8(data);
  if (/[\u0000-\u0009\u000b-\u001f]/.test(text) || !text.endsWith("\n")) refuse("a note has no control characters");
  const lines = text.slice(0, -1).split("\n");
  const [origin, size, root, blank] = lines;
  const isFormed = lines.length >= 5 && origin && size && root && blank === "";
  if (!isFormed) refuse("a checkpoint is three lines, a blank one, and at least one signature");
  if (lines.length - 4 > L.NOTE_SIGNATURES_MAX) refuse(`a note of ${lines.length - 4} signatures`);
  const isNumber = /^(?:0|[1-9][0-9]{0,15})$/.test(size) && BigInt(size) <= L.TIME_MS_MAX;
  if (!isNumber) refuse("the size of a log is a decimal number without leading zeroes");
  const digest = fromBase64(root, "the root of a checkpoint");
  if (digest.length !== 32) refuse("the root of a checkpoint has 32 bytes");
  const signatures = lines.slice(4).map(readSignatureLine);
  return { origin, size: BigInt(size), root: digest, text: UTF8.encode(`${origin}\n${size}\n${root}\n`), signatures };
}

function readSignatureLine(text) {
  if (!text.startsWith(DASH)) refuse("a signature line begins with an em dash and a space");
  const [name] = text.slice(DASH.length).split(" ", 1);
  if (!name || name.includes("+") || SPACES.test(name)) refuse("a key's name has neither spaces nor a plus");
  const data = fromBase64(text.slice(DASH.length + name.length + 1), "a signature");
  if (data.length <= 4) refuse("a signature is more than the hash of its key");
  return { name, keyHash: data.slice(0, 4), signature: data.slice(4), text };
}

const writeSignatureLine = (line) => UTF8.encode(`${line.text}\n`);

async function computeKeyHash(name, type, signer) {
  return (await sha256(UTF8.encode(`${name}\n`), Uint8Array.of(type), decodeParticipant(signer))).slice(0, 4);
}

/** The lines of these witnesses in a note, each verified; the last where one has several. */
async function findCosigners(network, note, witnesses) {
  const found = new Map();
  for (const witness of witnesses) {
    const name = `pocache/${toHex(network)}/witness/${witness}`;
    const keyHash = await computeKeyHash(name, NOTE_TYPES.cosignature, witness);
    for (const line of note.signatures) {
      if (line.name !== name || !sameBytes(line.keyHash, keyHash)) continue;
      if (line.signature.length !== 72 || line.signature[0] & 0x80) refuse("a cosignature has 72 bytes, its time below 2^63");
      const time = BigInt(`0x${toHex(line.signature.subarray(0, 8))}`);
      const cosigned = concat(UTF8.encode(`cosignature/v1\ntime ${time}\n`), note.text);
      await verifySignature(witness, cosigned, line.signature.subarray(8));
      found.set(witness, line);
    }
  }
  return found;
}

// --- steps R8 to R11 and R13: what public randomness decided ------------------------------------------------------

async function checkRounds(job, found) {
  const needed = job.dossier.getNeededRounds();
  found.equal("rounds shown, and rounds needed", [...job.rounds.keys()], needed);
  for (const number of needed) found.note(`randomness of round ${number}`, await job.getRandomness(number));
  if (!needed.length) found.skip("nothing was drawn");
}

async function checkPairings(job, found) {
  if (!job.roundMessages.length) return found.skip("nothing was drawn");
  const curves = await job.curves();
  if (!curves) return found.leaveOpen("not checked here: no pairing is at hand (the npm package @noble/curves)");
  for (const { number, message, signature } of job.roundMessages) {
    verifyPairing(curves, job.chain, message, signature);
    found.note(`signature of round ${number}`, signature);
  }
  return undefined;
}

const isTaken = async (job, round) => isDrawn(await job.openStream("audit", round, 0), job.genesis.audit.lottery_share);

async function checkAudit(job, found) {
  if (!job.isCommitted) return found.skip(NO_COMMITMENT);
  const { audit, dossier } = job;
  const equivocation = dossier.find("equivocation.v1");
  const isWindowClosed = dossier.find("window-closed.v1") !== null;
  if (isWindowClosed && audit !== null) refuse("the window was closed over an audit");
  if (equivocation !== null) await checkEquivocation(job, found, equivocation);
  if (isWindowClosed) found.equal("whether the lottery took it", false, await isTaken(job, dossier.getAuditRound()));
  if (audit !== null) await checkAuditOpening(job, found, audit);
  else if (!isWindowClosed && equivocation === null) {
    if (dossier.isOver) refuse("the job is over, and neither its window closed nor was it audited");
    found.leaveOpen("neither audited nor passed by yet");
  }
  return undefined;
}

async function checkAuditOpening(job, found, audit) {
  const { recorded, dossier } = job;
  found.equal("attempt that is audited", audit.attempt, recorded.attempt);
  found.equal("randomness of the audit's round", audit.randomness, await job.getRandomness(audit.round_number));
  const deepened = dossier.find("audit-deepened.v1");
  if (audit.reason === "lottery") {
    found.equal("round of the lottery", audit.round_number, dossier.getAuditRound());
    found.equal("whether the lottery took it", true, await isTaken(job, audit.round_number));
    found.equal("challenge that a lottery's audit has", audit.challenge, null);
    if (deepened !== null) await checkChallenge(job, found, deepened.challenge);
    return;
  }
  if (deepened !== null) refuse("a challenged audit was challenged again");
  await checkChallenge(job, found, audit.challenge);
  const first = bindRound(job.chain, recorded.recorded_ms, job.genesis.audit.bind_delay_ms);
  found.holds("round of the challenge", audit.round_number >= first, audit.round_number, `${first} or later`);
}

async function checkChallenge(job, found, data) {
  if (data === null) refuse("the user's challenge is not shown");
  const { sender, body } = await openEnvelope(data, job.network, "challenge-request.v1");
  found.equal("who challenged", sender, job.admitted.user);
  const { job_id: jobId, attempt: number } = job.recorded;
  found.equal("what was challenged", [body.job_id, body.attempt], [jobId, number]);
}

/** The same leaseholder signed two contradicting promises about one attempt (4.9). */
async function checkEquivocation(job, found, equivocation) {
  const evidence = job.dossier.get("evidence.v1");
  const second = await openEnvelope(evidence.result, job.network, "result.v1");
  const lease = await openEnvelope(second.body.lease, job.network, "lease.v1");
  const first = await job.result();
  found.equal("who signed the lease of the second result", lease.sender, job.genesis.signers.router);
  found.equal("who held it", lease.body.generator, job.recorded.generator);
  found.equal("who signed the second result", second.sender, job.recorded.generator);
  found.equal("the first result", equivocation.first_envelope_id, first.id);
  found.equal("the second result", equivocation.second_envelope_id, second.id);
  const promise = ({ body }) => [body.leaf_count, body.root, body.binding];
  const isAboutOne = isSame([first.body.job_id, first.body.attempt], [second.body.job_id, second.body.attempt]);
  const isContradiction = isAboutOne && !isSame(promise(first), promise(second));
  found.equal("whether the two contradict each other", true, isContradiction);
}

async function checkCorner(job, found) {
  const { audit } = job;
  if (audit === null) return found.skip(NO_AUDIT);
  let expected = await job.fullCorner();
  if (audit.reason === "lottery") {
    expected = drawCorner(await job.openStream("corner", audit.round_number, 0), {
      layerCount: job.model.schema.layer_count,
      leaves: (await job.result()).body.leaf_count,
      promptCount: (await job.prompt()).length,
      fullShare: job.genesis.audit.full_depth_share,
    });
  }
  found.equal("the corner", audit.corner, expected);
  return undefined;
}

async function checkSortition(job, found) {
  if (job.audit === null) {
    found.equal("snapshots, which a job that was not audited does not need", job.snapshots.size, 0);
    return found.skip(NO_AUDIT);
  }
  const { dossier } = job;
  const stages = dossier.getStageRounds();
  const shown = [...job.snapshots.keys()].sort(compareNumbers);
  const needed = dossier.getNeededSnapshots();
  // A stage that nobody was drawn for shows by its snapshot that there was nobody.
  const { rules } = job.genesis;
  const drawnFor = new Set([...dossier.drawnStages].map((seat) => getDrawOf(rules, seat)));
  const hasEmptyStage = [...stages.keys()].some((number) => !drawnFor.has(number));
  const stated = hasEmptyStage ? shown.filter((number) => needed.includes(number)) : shown;
  found.equal("snapshots shown, and snapshots needed", stated, needed);
  for (const [number, order] of await computeOrders(job)) {
    const drawn = listDrawn(job, number);
    checkStageRound(job, found, number, drawn);
    const places = drawn.map((one) => one.place);
    if (isCommittee(rules)) {
      // Whoever sits already is passed over: which places those are is the rules' to say, in R16.
      const isOnce = new Set(places).size === places.length && places.every((place) => place < order.length);
      found.holds(`places that were drawn for stage ${number}`, isOnce, places, "each once, all of the order");
    } else found.equal(`places that were drawn for stage ${number}`, places, [...drawn.keys()]);
    const names = drawn.map((one) => one.participant);
    found.equal(`who was drawn for stage ${number}`, names, places.map((place) => order[place] ?? null));
    if (isRecheck(rules, number)) {
      const { isDrawn: isLookedAt, corner: expected } = await drawRecheck(job, number);
      found.note("whether the agreement was to be rechecked", isLookedAt);
      found.note("the recheck's corner", expected);
    }
  }
  return undefined;
}

/** Whoever was drawn by one draw, for whichever of its seats, in the order of places. */
function listDrawn(job, draw) {
  const drawn = job.dossier.all("verifier-drawn.v1").filter((one) => getDrawOf(job.genesis.rules, one.stage) === draw);
  return drawn.sort((one, other) => one.place - other.place);
}

/** Whether a draw's round has an agreement looked at again, and where; a draw without a lottery is held in full. */
async function drawRecheck(job, draw) {
  const { rules, audit } = job.genesis;
  if (!isRecheck(rules, draw)) return { isDrawn: true, corner: await job.fullCorner() };
  const round = job.dossier.getStageRounds().get(draw);
  const { numerator, denominator } = rules.recheck;
  return {
    isDrawn: isDrawn(await job.openStream("recheck", round, draw), [numerator, denominator]),
    corner: drawCorner(await job.openStream("corner", round, draw), {
      layerCount: job.model.schema.layer_count,
      leaves: (await job.result()).body.leaf_count,
      promptCount: (await job.prompt()).length,
      fullShare: audit.full_depth_share,
    }),
  };
}

function checkStageRound(job, found, number, drawn) {
  const round = job.dossier.getStageRounds().get(number);
  const bound = job.dossier.find("stage-bound.v1", { stage: number });
  if (bound !== null) checkBound(job, found, `the round that draws stage ${number}`, bound.round_number, bound.ended_ms);
  for (const one of drawn) found.equal(`the round that drew for stage ${number}`, one.round_number, round);
  if (drawn.length) {
    const age = computeRoundTime(job.chain, round) - findSnapshot(job, number).taken_ms;
    found.holds("ms from the snapshot to its round", age > 0n, age, "more than 0");
  }
}

/** Sortition's order of every draw whose round has come, without those related to the job's parties (6.6). */
async function computeOrders(job) {
  const orders = new Map();
  const excluded = new Set();
  const { rules, audit } = job.genesis;
  const needed = job.dossier.getNeededRounds();
  for (const [number, round] of job.dossier.getStageRounds()) {
    if (!needed.includes(round)) continue;
    const snapshot = findSnapshot(job, number);
    const stakes = (snapshot?.members ?? [])
      .filter((one) => one.model_ids.some((id) => sameBytes(id, job.model.entry.model_id)))
      .map((one) => [one.participant, one.stake_micro]);
    const weights = computeWeights(stakes, {
      owners: new Map((snapshot?.owners ?? []).map((one) => [one.participant, one.owner])),
      parties: [job.recorded.generator, job.admitted.user],
      excluded,
      shareMax: audit.owner_stake_share,
    });
    orders.set(number, drawOrder(await job.openStream(getDrawTag(rules, number), round, number), weights));
    if (!isCommittee(rules)) for (const one of listDrawn(job, number)) excluded.add(one.participant);
  }
  return orders;
}

/** The snapshot that a stage's draws name, else the latest that is shown from before its round. */
function findSnapshot(job, number) {
  const due = computeRoundTime(job.chain, job.dossier.getStageRounds().get(number));
  const named = new Set(listDrawn(job, number).map((one) => one.snapshot));
  if (named.size > 1) refuse(`stage ${number} was drawn from several snapshots: ${[...named].join(", ")}`);
  if (named.size === 1) {
    const [snapshot] = named;
    return job.snapshots.get(snapshot) ?? refuse(`snapshot ${snapshot}, from which stage ${number} was drawn, is not shown`);
  }
  const isLater = (one, other) => compareNumbers(one.taken_ms, other.taken_ms) || compareNumbers(one.number, other.number);
  return [...job.snapshots.values()].filter((one) => one.taken_ms < due).sort(isLater).at(-1) ?? null;
}

async function checkPositions(job, found) {
  const closings = job.dossier.all("openings-closed.v1");
  if (!closings.length) return found.skip(job.audit === null ? NO_AUDIT : "no stage came to its openings");
  for (const closed of closings) {
    const sealed = job.dossier.get("stage-sealed.v1", { stage: closed.stage, retry: closed.retry });
    const stream = await job.openStream("positions", closed.round_number, sealed.retry * 2 ** 16 + sealed.stage);
    const counts = { promptCount: (await job.prompt()).length, sampleCount: sealed.sample_count };
    const expected = drawPositions(stream, sealed.corner, counts);
    found.equal(`positions of stage ${closed.stage}, look ${closed.retry + 1}`, unpackTokens(closed.positions), expected);
  }
  return undefined;
}

// --- steps R12, R14, R15: sealed, opened, compared ----------------------------------------------------------------

async function checkClaims(job, found) {
  const stages = job.dossier.all("stage-sealed.v1");
  if (!stages.length) return found.skip(job.audit === null ? NO_AUDIT : "no claim was sealed");
  for (const sealed of stages) {
    await checkGeneratorParty(job, found, sealed);
    await checkVerifierParties(job, found, sealed);
    const which = `stage ${sealed.stage}, look ${sealed.retry + 1}`;
    const closed = job.dossier.find("openings-closed.v1", { stage: sealed.stage, retry: sealed.retry });
    if (closed === null) {
      if (!job.isEquivocated && job.dossier.isOver) refuse(`the openings of ${which}, are not shown`);
      continue;
    }
    checkBound(job, found, `the round that draws the positions of ${which}`, closed.round_number, sealed.sealed_ms);
  }
  return undefined;
}

async function checkGeneratorParty(job, found, sealed) {
  const [generator] = sealed.parties;
  const { body: result } = await job.result();
  const stated = [generator.participant, generator.stage, generator.root, generator.leaf_count];
  const expected = [job.recorded.generator, 0, result.root, result.leaf_count];
  found.equal(`the generator's commitment, as stage ${sealed.stage} has it`, stated, expected);
  found.equal("what it covers", generator.corner, await job.fullCorner());
}

async function checkVerifierParties(job, found, sealed) {
  const verifiers = sealed.parties.slice(1);
  const stages = verifiers.map((party) => party.stage);
  const { rules } = job.genesis;
  const isOwnLast = getStageOf(rules, stages.at(-1)) === sealed.stage;
  const isAscending = stages.every((one, at) => one > (stages[at - 1] ?? 0)) && isOwnLast;
  found.holds("stages of the verifiers", isAscending, stages, `ascending, ${sealed.stage} the last`);
  const names = new Set(sealed.parties.map((party) => party.participant));
  found.equal("parties of the stage, each once", names.size, sealed.parties.length);
  for (const party of verifiers) {
    if (party.claim === null) refuse(`the claim of stage ${party.stage} is not shown`);
    const { sender, body } = await openEnvelope(party.claim, job.network, "claim-sealed.v1");
    found.equal(`who signed the claim of stage ${party.stage}`, sender, party.participant);
    const signed = [body.job_id, body.attempt, body.stage, body.root, body.leaf_count];
    const told = getToldStage(rules, party.stage);
    const stated = [sealed.job_id, sealed.attempt, told, party.root, party.leaf_count];
    found.equal(`what the claim of stage ${party.stage} says`, stated, signed);
    found.equal("its corner", party.corner, body.corner);
    found.equal("its leaves", body.leaf_count, body.corner.position_max + 1);
    found.equal("its numeric stack", body.stack, job.model.entry.stack);
    if (getStageOf(rules, party.stage) === sealed.stage) found.equal("its look", body.retry, sealed.retry);
  }
}

const isLook = (stageNumber, retryNumber) => (body) => body.stage === stageNumber && body.retry === retryNumber;

async function checkOpenings(job, found) {
  const { dossier } = job;
  const closings = dossier.all("openings-closed.v1");
  const accepted = dossier.all("opening-accepted.v1");
  if (!closings.length && !accepted.length) return found.skip(job.audit === null ? NO_AUDIT : "nothing was opened");
  let counted = 0;
  for (const closed of closings) {
    const sealed = dossier.get("stage-sealed.v1", { stage: closed.stage, retry: closed.retry });
    const positions = unpackTokens(closed.positions);
    const names = sealed.parties.map((party) => party.participant);
    const what = `who opened stage ${closed.stage}, look ${closed.retry + 1}, and who did not`;
    found.equal(what, [...closed.opened, ...closed.missing].sort(), names.sort());
    for (const party of sealed.parties) {
      const asked = positions.filter((position) => position <= party.corner.position_max);
      const parts = await readParts(job, sealed, party);
      const shown = parts.flatMap((part) => unpackTokens(part.positions));
      counted += parts.reduce((count, part) => count + part.leaves.length, 0);
      const isWhole = isSame(shown, asked) && parts.every((part) => part.part_count === parts.length);
      const isOpened = closed.opened.includes(party.participant);
      found.equal(`whether ${party.participant} opened all it was asked for`, isOpened, isWhole);
    }
  }
  for (const one of accepted) {
    const sealed = dossier.all("stage-sealed.v1").find(isLook(one.stage, one.retry));
    if (!sealed?.parties.some((party) => party.participant === one.participant)) {
      refuse(`an opening of ${one.participant}, who is no party of stage ${one.stage}`);
    }
  }
  found.note("leaves whose multiproofs lead to their roots", counted);
  return undefined;
}

/** The parts of a party's opening in their order, each signature, leaf and multiproof verified; once each. */
async function readParts(job, sealed, party) {
  const key = [sealed.stage, sealed.retry, party.participant].join();
  if (!job.parts.has(key)) job.parts.set(key, await openParts(job, sealed, party));
  return job.parts.get(key);
}

const getSchema = (job, party) => (party.stage === 0 ? job.model.schema : restrictSchema(job.model.schema, party.corner));

async function openParts(job, sealed, party) {
  const schema = getSchema(job, party);
  const promptCount = (await job.prompt()).length;
  const parts = new Map();
  for (const accepted of job.dossier.all("opening-accepted.v1").filter(isLook(sealed.stage, sealed.retry))) {
    if (accepted.participant !== party.participant) continue;
    const { sender, body } = await openEnvelope(accepted.opening, job.network, "opening.v1");
    const signed = [sender, body.job_id, body.attempt, body.stage, body.retry];
    const told = party.stage === GENERATOR_STAGE ? sealed.stage : getToldStage(job.genesis.rules, sealed.stage);
    if (!isSame(signed, [party.participant, sealed.job_id, sealed.attempt, told, sealed.retry])) {
      refuse(`the opening of ${party.participant} is another's, or of another stage`);
    }
    if (parts.has(body.part) || body.part >= body.part_count) refuse(`part ${body.part} of ${body.part_count} of an opening`);
    await verifyOpening(body, schema, promptCount, party);
    parts.set(body.part, body);
  }
  return [...parts.keys()].sort(compareNumbers).map((number) => parts.get(number));
}

async function verifyOpening(body, schema, promptCount, party) {
  const positions = unpackTokens(body.positions);
  if (body.leaves.length !== positions.length) refuse(`${body.leaves.length} leaves for ${positions.length} positions`);
  if (positions.some((position, at) => at > 0 && positions[at - 1] >= position)) refuse("the positions do not ascend");
  const hashes = [];
  for (const [at, position] of positions.entries()) {
    decodeLeaf(schema, position, position >= promptCount - 1, body.leaves[at]);
    hashes.push([position, await hashLeaf(body.leaves[at])]);
  }
  if (body.proof.length % 32) refuse("a multiproof is digests of 32 bytes");
  const proof = Array.from({ length: body.proof.length / 32 }, (_, at) => body.proof.subarray(32 * at, 32 * at + 32));
  await verifyMultiproof(hashes, party.leaf_count, proof, party.root);
}

async function checkComparisons(job, found) {
  const { outcome } = job;
  if (outcome === null || !outcome.comparisons.length) {
    return found.skip(job.audit === null ? NO_AUDIT : "nothing was compared");
  }
  for (const stated of outcome.comparisons) {
    const sealed = job.dossier.get("stage-sealed.v1", { stage: stated.stage, retry: stated.retry });
    const [left, right] = [stated.left, stated.right].map((name) => findParty(sealed, name));
    if (!left || !right) refuse(`a comparison of those who are no parties of stage ${stated.stage}`);
    const computed = await compareParties(job, sealed, left, right);
    const what = `stage ${stated.stage}, look ${stated.retry + 1}: ${stated.left.slice(0, 8)}… against ${stated.right.slice(0, 8)}…`;
    found.equal(what, stated, {
      stage: stated.stage,
      retry: stated.retry,
      left: stated.left,
      right: stated.right,
      verdict: computed.verdict,
      mean_q16: computed.mean,
      peak_q16: computed.peak,
      ...computed.limits,
      distance_peak_q16: computed.distancePeak,
      row_count: computed.rowCount,
      position_count: computed.positionCount,
      outlier_count: computed.outlierCount,
      is_too_exact: computed.isTooExact,
      grade: computed.grade,
      tokens: computed.tokens,
    });
  }
  return undefined;
}

const findParty = (sealed, name) => sealed.parties.findLast((party) => party.participant === name);

/** A stage's verifier (ours) against another party, whose norm divides; each comparison once. */
async function compareParties(job, sealed, ours, theirs) {
  const key = [sealed.stage, sealed.retry, ours.participant, theirs.participant].join();
  if (!job.comparisons.has(key)) {
    const closed = job.dossier.get("openings-closed.v1", { stage: sealed.stage, retry: sealed.retry });
    const shared = commonCorner(ours.corner, theirs.corner);
    const positions = unpackTokens(closed.positions).filter((position) => position <= shared.position_max);
    const [our, their] = [await readRows(job, sealed, ours, positions, shared), await readRows(job, sealed, theirs, positions, shared)];
    job.comparisons.set(key, compareRows(job.model.profile, our, their, job.model.schema.float_format, theirs.stage === 0));
  }
  return job.comparisons.get(key);
}

const commonCorner = (one, other) => ({
  layer_max: Math.min(one.layer_max, other.layer_max),
  position_max: Math.min(one.position_max, other.position_max),
  full_depth: one.full_depth && other.full_depth,
});

/** A party's rows within a corner, by position; behind the last layer only at full depth (7.4.1). */
async function readRows(job, sealed, party, positions, shared) {
  const schema = getSchema(job, party);
  const outputFirst = (await job.prompt()).length - 1;
  const leaves = new Map();
  for (const part of await readParts(job, sealed, party)) {
    for (const [at, position] of unpackTokens(part.positions).entries()) leaves.set(position, part.leaves[at]);
  }
  const isWithin = ({ kind, layer }) =>
    kind === ROW_KINDS.K || kind === ROW_KINDS.V ? layer <= shared.layer_max : shared.full_depth;
  const rows = new Map();
  for (const position of positions) {
    if (!leaves.has(position)) refuse(`${party.participant} opened no leaf at position ${position}`);
    const decoded = decodeLeaf(schema, position, position >= outputFirst, leaves.get(position));
    rows.set(position, decoded.filter(isWithin));
  }
  return rows;
}

// --- step R16: the dispute, run again (8) -------------------------------------------------------------------------

const RETRY_SAMPLE_FACTOR = 4;
const GENERATOR_STAGE = 0;

const hasPositions = (party, positions) => positions.some((position) => position <= party.corner.position_max);
const isStanding = (seat) => seat.hasOpened && !seat.isSilent;

/** The state machine of docs/protocol.md 8; each event gives at most one command, or null. */
class Dispute {
  constructor(generator, stageMax, sampleCount) {
    Object.assign(this, { generator, stageMax, sampleCount, corner: generator.corner, phase: "waiting" });
    Object.assign(this, { stage: 0, retry: 0, order: [], asked: 0, candidate: null, seats: [], against: [], positions: [] });
    Object.assign(this, { isDeepened: false, isEquivocated: false, outcome: null });
  }

  get seat() {
    return this.seats.at(-1);
  }

  onAuditOpened({ order, corner: opened }) {
    if (this.phase !== "waiting") return null;
    Object.assign(this, { stage: 1, corner: opened, order });
    return this.askNext();
  }

  onOrderDrawn({ stage: drawnStage, order }) {
    if (this.phase !== "drawing" || drawnStage !== this.stage) return null;
    this.order = order;
    return this.askNext();
  }

  onHold({ isPlaced, participant: name, stage: heldStage }) {
    if (this.phase !== "holding" || name !== this.candidate || heldStage !== this.stage) return null;
    this.candidate = null;
    if (isPlaced) {
      const seat = { participant: name, stage: heldStage, corner: null, root: null, hasOpened: false, isSilent: false };
      this.seats.push(seat);
    }
    if (this.isEquivocated) return this.decide("equivocation");
    if (!isPlaced) return this.askNext();
    return this.assign(this.isDeepened ? this.generator.corner : this.corner);
  }

  onClaim(claim) {
    this.verifyClaim(claim);
    Object.assign(this.seat, { corner: claim.corner, root: claim.root });
    this.phase = "opening";
    const sampleCount = Math.min(this.sampleCount * (this.retry ? RETRY_SAMPLE_FACTOR : 1), L.SAMPLE_COUNT_MAX);
    const parties = [this.generator, ...this.seats.filter((seat) => seat.root !== null && !seat.isSilent)];
    const sealed = parties.map((one) => [one.participant, one.stage, one.root, one.corner]);
    return { kind: "seal", stage: this.stage, retry: this.retry, corner: this.corner, parties: sealed, sampleCount };
  }

  verifyClaim(claim) {
    const seat = this.seats[claim.stage - 1];
    if (seat?.participant !== claim.participant) refuse(`${claim.participant} was not drawn for stage ${claim.stage}`);
    if (this.phase === "decided") refuse("the job is decided");
    if (claim.stage < this.stage || (claim.stage === this.stage && claim.retry < this.retry)) refuse("the stage is over");
    if (claim.retry !== this.retry) refuse(`no second look was asked for at stage ${claim.stage}`);
    if (this.phase !== "sealing") refuse(`a claim is sealed for stage ${claim.stage}.${claim.retry}`);
    if (!isSame(claim.corner, this.corner)) refuse("the claim covers another corner than the task");
    if (claim.leafCount !== this.corner.position_max + 1) refuse(`${claim.leafCount} leaves sealed`);
  }

  onSealExpired({ stage: lateStage, retry: lateRetry }) {
    if (this.phase !== "sealing" || lateStage !== this.stage || lateRetry !== this.retry) return null;
    this.seat.isSilent = true;
    return this.beginStage();
  }

  onOpeningsClosed({ stage: closedStage, retry: closedRetry, positions, opened }) {
    if (this.phase !== "opening" || closedStage !== this.stage || closedRetry !== this.retry) return null;
    for (const seat of this.seats) {
      // Who had nothing to open, because all lies beyond its corner, has neither opened nor been silent.
      if (seat.root === null || seat.isSilent || !hasPositions(seat, positions)) continue;
      if (opened.includes(seat.participant)) seat.hasOpened = true;
      else seat.isSilent = true;
    }
    if (!opened.includes(this.generator.participant)) return this.decide("no_opening");
    if (this.seat.isSilent) return this.beginStage();
    const priors = this.seats.slice(0, -1).filter((seat) => isStanding(seat) && hasPositions(seat, positions));
    this.phase = "comparing";
    this.positions = positions;
    this.against = [GENERATOR_STAGE, ...priors.map((seat) => seat.stage)];
    return this.compareNext();
  }

  /** The generator first, then earlier verifiers; the first match decides. Inconclusive convicts nobody (8.5, 8.6). */
  onCompared({ stage: seenStage, retry: seenRetry, against, verdict }) {
    const isAwaited = seenStage === this.stage && seenRetry === this.retry && against === this.against[0];
    if (this.phase !== "comparing" || !isAwaited) return null;
    const deciding = this.seat.participant;
    if (against === GENERATOR_STAGE && verdict !== "mismatch") {
      const isTooShallow = this.isDeepened && !this.corner.full_depth;
      if (this.retry === 0 && (isTooShallow || verdict !== "match")) return this.lookAgain();
      return this.decide(this.stage === 1 ? "agree" : "confirm_generator", deciding);
    }
    if (against !== GENERATOR_STAGE && verdict === "match") {
      return this.decide("confirm_prior", deciding, this.seats[against - 1].participant);
    }
    this.against = this.against.slice(1);
    return this.compareNext();
  }

  onDeepened() {
    if (this.phase !== "decided") this.isDeepened = true;
    return null;
  }

  onEquivocated() {
    if (this.phase === "decided") return null;
    // An outcome must name every stake in the pool, so it waits until the one asked for is known to be there or not.
    if (this.phase === "holding") {
      this.isEquivocated = true;
      return null;
    }
    return this.decide("equivocation");
  }

  beginStage() {
    if (this.stage === this.stageMax) return this.decide("void");
    Object.assign(this, { phase: "drawing", stage: this.stage + 1, retry: 0, order: [], asked: 0 });
    return null;
  }

  /** Whose stakes are asked for: [participant, seat]. */
  get pending() {
    return [[this.candidate, this.stage]];
  }

  askNext() {
    const place = this.asked;
    if (place === this.order.length) return this.decide("void");
    Object.assign(this, { phase: "holding", candidate: this.order[place], asked: place + 1 });
    return { kind: "hold", participant: this.candidate, stage: this.stage, place };
  }

  assign(assigned) {
    Object.assign(this, { phase: "sealing", corner: assigned });
    return null;
  }

  compareNext() {
    if (!this.against.length) {
      this.positions = [];
      return this.beginStage();
    }
    const [first] = this.against;
    const theirs = first === GENERATOR_STAGE ? this.generator : this.seats[first - 1];
    return { kind: "compare", stage: this.stage, retry: this.retry, ours: this.seat.participant, theirs: theirs.participant, against: first };
  }

  lookAgain() {
    Object.assign(this, { retry: 1, positions: [], against: [] });
    return this.assign(this.generator.corner);
  }

  decide(ended, deciding = null, prior = null) {
    const verifiers = this.seats.map((seat) => [seat.participant, seat.stage, isStanding(seat), false]);
    const isChallenged = false;
    this.outcome = { case: ended, stage: this.seat?.stage ?? 0, corner: this.corner, verifiers, deciding, prior, isChallenged };
    Object.assign(this, { phase: "decided", candidate: null, order: [], positions: [], against: [] });
    return null;
  }
}

/** The first `size` numbers that match each other pairwise, in lexicographic order; [] where there are none. */
function findClique(numbers, matched, size) {
  if (size === 0) return [];
  for (let at = 0; at + size <= numbers.length; at += 1) {
    const first = numbers[at];
    const rest = numbers.slice(at + 1).filter((other) => matched.has(`${first}.${other}`));
    if (size === 1) return [first];
    const found = findClique(rest, matched, size - 1);
    if (found.length) return [first, ...found];
  }
  return [];
}

const spanCorners = (one, other) => ({
  layer_max: Math.max(one.layer_max, other.layer_max),
  position_max: Math.max(one.position_max, other.position_max),
  full_depth: one.full_depth || other.full_depth,
});

/** The state machine of `fixed-fee-committee` (8.9); each event gives a list of commands. */
class CommitteeDispute {
  constructor(generator, rules, sampleCount) {
    Object.assign(this, { generator, rules, sampleCount, corner: generator.corner, widest: generator.corner });
    Object.assign(this, { phase: "waiting", stage: 0, retry: 0, order: [], asked: 0, pending: [], seats: [], sealed: [] });
    Object.assign(this, { isChallenged: false, isFullDepthAgreed: false, finder: null, isEquivocated: false });
    Object.assign(this, { positions: [], judging: "generator", pairs: [], matched: new Set(), majority: [] });
    Object.assign(this, { confirmed: [], rejected: [], outcome: null });
  }

  get part() {
    return getPart(this.rules, this.stage);
  }

  get members() {
    const numbers = getSeatsOf(this.rules, this.stage);
    return this.seats.filter((seat) => numbers.includes(seat.stage) && !seat.isSilent);
  }

  /** The seats whose rows the current stage looks at: a recheck does not ask the audit's verifier. */
  get judged() {
    const seats = this.part === "committee" ? this.seats : this.members;
    return seats.filter((seat) => this.stands(seat));
  }

  get quorum() {
    return this.part === "committee" ? getMajority(this.rules) : 1;
  }

  get isTooShallow() {
    return this.isChallenged && !this.isFullDepthAgreed;
  }

  stands(seat) {
    return seat.root !== null && !seat.isSilent;
  }

  seatOf(number) {
    return number === GENERATOR_STAGE ? this.generator : this.seats.find((seat) => seat.stage === number);
  }

  onAuditOpened({ order, corner: opened, isAsked }) {
    if (this.phase !== "waiting") return [];
    if (isAsked) this.isChallenged = true;
    Object.assign(this, { order, corner: opened, widest: opened });
    return this.begin(AUDIT_SEAT);
  }

  onOrderDrawn({ stage: drawnStage, order, isDrawn: isLookedAt, corner: drawn }) {
    if (this.phase !== "drawing" || drawnStage !== this.stage) return [];
    if (this.part === "recheck") {
      if (!isLookedAt && !this.isTooShallow) return this.agree();
      this.corner = drawn;
    }
    this.order = order;
    return this.begin(this.stage);
  }

  onHold({ isPlaced, participant: name, stage: seatNumber }) {
    const at = this.pending.findIndex(([who, seat]) => who === name && seat === seatNumber);
    if (this.phase !== "holding" || at < 0) return [];
    this.pending.splice(at, 1);
    if (isPlaced) {
      this.seats.push({ participant: name, stage: seatNumber, corner: null, root: null, isSilent: false, verdict: null });
      this.seats.sort((one, other) => one.stage - other.stage);
    } else if (!this.isEquivocated) return this.ask([seatNumber]);
    if (this.pending.length) return [];
    return this.isEquivocated ? this.decide("equivocation") : this.assignStage();
  }

  onClaim(claim) {
    this.verifyClaim(claim);
    Object.assign(this.seatOf(claim.stage), { corner: claim.corner, root: claim.root });
    this.sealed.push(claim.stage);
    return this.sealed.length < this.members.length ? [] : this.openStage();
  }

  verifyClaim(claim) {
    const seat = this.seats.find((one) => one.stage === claim.stage);
    if (seat?.participant !== claim.participant) refuse(`${claim.participant} was not drawn for seat ${claim.stage}`);
    if (this.phase === "decided") refuse("the job is decided");
    const stageNumber = getStageOf(this.rules, claim.stage);
    if (seat.isSilent) refuse(`the time for the claim of seat ${claim.stage} is over`);
    if (stageNumber < this.stage || (stageNumber === this.stage && claim.retry < this.retry)) refuse("the stage is over");
    if (claim.retry !== this.retry) refuse(`no second look was asked for at stage ${stageNumber}`);
    if (this.phase === "holding") refuse(`no task was given out for stage ${stageNumber} yet`);
    if (this.phase !== "sealing" || this.sealed.includes(claim.stage)) refuse(`a claim is sealed for seat ${claim.stage}`);
    if (!isSame(claim.corner, this.corner)) refuse("the claim covers another corner than the task");
    if (claim.leafCount !== this.corner.position_max + 1) refuse(`${claim.leafCount} leaves sealed`);
  }

  onSealExpired({ stage: lateStage, retry: lateRetry }) {
    if (this.phase !== "sealing" || lateStage !== this.stage || lateRetry !== this.retry) return [];
    for (const seat of this.members) if (!this.sealed.includes(seat.stage)) seat.isSilent = true;
    if (this.sealed.length >= this.quorum) return this.openStage();
    return this.part === "committee" ? this.giveUp() : this.tryNext();
  }

  onOpeningsClosed({ stage: closedStage, retry: closedRetry, positions, opened }) {
    if (this.phase !== "opening" || closedStage !== this.stage || closedRetry !== this.retry) return [];
    const asked = this.judged.filter((seat) => hasPositions(seat, positions));
    for (const seat of asked) if (!opened.includes(seat.participant)) seat.isSilent = true;
    if (!opened.includes(this.generator.participant)) return this.decide("no_opening");
    if (this.part !== "committee" && !this.members.length) return this.tryNext();
    const pairs = this.judged.filter((seat) => hasPositions(seat, positions)).map((seat) => [seat.stage, GENERATOR_STAGE]);
    Object.assign(this, { phase: "comparing", positions, judging: "generator", pairs, matched: new Set() });
    Object.assign(this, { majority: [], confirmed: [], rejected: [] });
    return this.compareNext();
  }

  /** Inconclusive never convicts: it is no mismatch, and among members no match. */
  onCompared({ stage: seenStage, retry: seenRetry, ours, against, verdict }) {
    const isAwaited = seenStage === this.stage && seenRetry === this.retry && isSame([ours, against], this.pairs[0] ?? []);
    if (this.phase !== "comparing" || !isAwaited) return [];
    if (this.judging === "generator") this.seatOf(ours).verdict = verdict;
    else if (this.judging === "members" && verdict === "match") this.matched.add(`${ours}.${against}`);
    else if (this.judging === "majority" && verdict === "match") this.confirmed.push(ours);
    else if (this.judging === "majority" && verdict === "mismatch") this.rejected.push(ours);
    this.pairs = this.pairs.slice(1);
    return this.compareNext();
  }

  onDeepened() {
    if (this.phase !== "decided") this.isChallenged = true;
    return [];
  }

  onEquivocated() {
    if (this.phase === "decided") return [];
    // An outcome must name every stake in the pool, so it waits until those asked for are known to be there or not.
    if (this.pending.length) {
      this.isEquivocated = true;
      return [];
    }
    return this.decide("equivocation");
  }

  draw(stageNumber) {
    Object.assign(this, { phase: "drawing", stage: stageNumber, retry: 0, order: [], asked: 0, positions: [] });
    return [];
  }

  begin(stageNumber) {
    Object.assign(this, { phase: "holding", stage: stageNumber, retry: 0 });
    return this.ask(getSeatsOf(this.rules, stageNumber));
  }

  /** The next candidates of the order, one for each of these seats; nobody sits twice in one job. */
  ask(numbers) {
    const taken = new Set([...this.seats.map((seat) => seat.participant), ...this.pending.map(([name]) => name)]);
    const commands = [];
    let place = this.asked;
    for (; place < this.order.length && commands.length < numbers.length; place += 1) {
      const name = this.order[place];
      if (!taken.has(name)) commands.push({ kind: "hold", participant: name, stage: numbers[commands.length], place });
    }
    this.asked = commands.length ? commands.at(-1).place + 1 : this.order.length;
    this.pending.push(...commands.map((one) => [one.participant, one.stage]));
    return this.pending.length ? commands : this.assignStage();
  }

  assignStage() {
    const { members } = this;
    if (members.length < this.quorum) {
      this.seats = this.seats.filter((seat) => !members.includes(seat));
      return this.giveUp();
    }
    const isFull = this.isChallenged || this.part === "committee";
    return this.assign(isFull ? this.generator.corner : this.corner);
  }

  assign(assigned) {
    Object.assign(this, { phase: "sealing", corner: assigned, widest: spanCorners(this.widest, assigned), sealed: [] });
    return [];
  }

  giveUp() {
    const { part } = this;
    if (part === "audit" || (part === "recheck" && this.isTooShallow)) return this.decide("void");
    if (part === "recheck") return this.agree();
    const following = this.stage + this.rules.committee_size;
    return following > getSeatMax(this.rules) ? this.decide("void") : this.draw(following);
  }

  tryNext() {
    const following = this.stage + 1;
    return getPart(this.rules, following) === this.part ? this.begin(following) : this.giveUp();
  }

  openStage() {
    const isClose = this.retry || this.part === "committee";
    this.phase = "opening";
    const sampleCount = Math.min(this.sampleCount * (isClose ? RETRY_SAMPLE_FACTOR : 1), L.SAMPLE_COUNT_MAX);
    const parties = [this.generator, ...this.judged].map((one) => [one.participant, one.stage, one.root, one.corner]);
    return [{ kind: "seal", stage: this.stage, retry: this.retry, corner: this.corner, parties, sampleCount }];
  }

  compareNext() {
    if (!this.pairs.length) return this.conclude();
    const [[ours, against]] = this.pairs;
    const names = { ours: this.seatOf(ours).participant, theirs: this.seatOf(against).participant };
    return [{ kind: "compare", stage: this.stage, retry: this.retry, ...names, ourSeat: ours, against }];
  }

  conclude() {
    if (this.part !== "committee") return this.concludeLook();
    if (this.judging === "generator") return this.countVotes();
    return this.judging === "members" ? this.findMajority() : this.decide("conviction");
  }

  concludeLook() {
    const [seat] = this.members;
    if (seat.verdict === "mismatch") {
      this.finder = seat.stage;
      return this.draw(COMMITTEE_SEAT);
    }
    const isFull = this.corner.full_depth;
    if (this.retry === 0 && (seat.verdict === "inconclusive" || (this.isChallenged && !isFull))) {
      Object.assign(this, { retry: 1, positions: [] });
      return this.assign(this.generator.corner);
    }
    this.isFullDepthAgreed ||= isFull;
    return this.part === "audit" ? this.draw(RECHECK_SEAT) : this.agree();
  }

  countVotes() {
    const { members } = this;
    const differing = members.filter((seat) => seat.verdict === "mismatch").map((seat) => seat.stage);
    const majority = getMajority(this.rules);
    if (members.length - differing.length >= majority) return this.decide("acquittal");
    if (differing.length < majority) return this.giveUp();
    const pairs = differing.flatMap((one, at) => differing.slice(at + 1).map((other) => [one, other]));
    Object.assign(this, { judging: "members", pairs });
    return this.compareNext();
  }

  findMajority() {
    const differing = this.members.filter((seat) => seat.verdict === "mismatch").map((seat) => seat.stage);
    const majority = findClique(differing, this.matched, getMajority(this.rules));
    if (!majority.length) return this.giveUp();
    const others = this.judged.filter((seat) => hasPositions(seat, this.positions) && !majority.includes(seat.stage));
    Object.assign(this, { judging: "majority", majority, pairs: others.map((seat) => [seat.stage, majority[0]]) });
    return this.compareNext();
  }

  agree() {
    return this.decide("agree");
  }

  /** Whether the outcome bears out a claim; where nothing could be compared, nothing speaks against it. */
  isUpheld(ended, seat) {
    if (!this.stands(seat)) return false;
    if (ended === "agree" || ended === "acquittal") return seat.verdict !== "mismatch";
    return ended === "conviction" && !this.rejected.includes(seat.stage);
  }

  decide(ended) {
    const verifiers = this.seats.map((seat) => [seat.participant, seat.stage, this.stands(seat), this.isUpheld(ended, seat)]);
    const finder = this.seats.find((seat) => seat.stage === this.finder && this.isUpheld(ended, seat));
    const isFound = ended === "conviction" && finder !== undefined && this.confirmed.includes(this.finder);
    const prior = isFound ? finder.participant : null;
    const stageNumber = this.seats.at(-1)?.stage ?? 0;
    const { isChallenged } = this;
    this.outcome = { case: ended, stage: stageNumber, corner: this.widest, verifiers, deciding: null, prior, isChallenged };
    Object.assign(this, { phase: "decided", order: [], positions: [], pairs: [] });
    return [];
  }
}

const EVENTS_MAX = 4_096;
const INTERRUPTIONS_MAX = 64;

/** R16: some run of the rules over this record ends in exactly this outcome, and uses all of the record. */
async function checkOutcome(job, found) {
  const { outcome, dossier } = job;
  if (outcome === null) {
    if (dossier.isOver && (job.audit !== null || job.isEquivocated)) refuse("the dispute's outcome is not shown");
    return found.skip(job.audit === null ? NO_AUDIT : "the dispute is not decided yet");
  }
  if (job.audit === null && !job.isEquivocated) refuse("an outcome of a job that was neither audited nor contradicted");
  const orders = job.audit === null ? new Map() : await computeOrders(job);
  const stated = {
    attempt: outcome.attempt,
    case: outcome.case,
    stage: outcome.stage,
    corner: outcome.corner,
    verifiers: outcome.verifiers.map((one) => [one.participant, one.stage, one.opened, one.upheld]),
    deciding: outcome.deciding,
    prior: outcome.prior,
    isChallenged: outcome.is_challenged,
    compared: outcome.comparisons.map((one) => [one.stage, one.retry, one.left, one.right]),
  };
  let failure = null;
  for await (const [deepenedAt, equivocatedAt] of listMoments(job, orders)) {
    try {
      const run = await play(job, orders, deepenedAt, equivocatedAt);
      compareOutcome(job, stated, run);
      found.note("the outcome", stated);
      found.note("events that led to it", run.eventCount);
      return undefined;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      failure ??= error;
    }
  }
  throw failure;
}

/** Moments at which a challenge and an equivocation can have come; null is after the end, or never. */
async function* listMoments(job, orders) {
  yield [null, null];
  const deepenings = [null];
  if (job.dossier.find("audit-deepened.v1") !== null) {
    const last = await countEvents(job, orders, null);
    for (let moment = 1; moment <= last; moment += 1) deepenings.push(moment);
  }
  for (const deepenedAt of deepenings) {
    if (deepenedAt !== null) yield [deepenedAt, null];
    if (!job.isEquivocated) continue;
    const last = await countEvents(job, orders, deepenedAt);
    for (let moment = 0; moment <= last; moment += 1) yield [deepenedAt, moment];
  }
}

async function countEvents(job, orders, deepenedAt) {
  try {
    return (await play(job, orders, deepenedAt, null)).eventCount;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return INTERRUPTIONS_MAX;
  }
}

function compareOutcome(job, stated, run) {
  if (run.dispute.outcome === null) refuse("the outcome: the record ends before one");
  const computed = { attempt: job.recorded.attempt, ...run.dispute.outcome, compared: run.compared };
  if (!isSame(stated, computed)) refuse(`the outcome: it says ${describe(stated)}; it must be ${describe(computed)}`);
  const { dossier } = job;
  const said = [
    ...dossier.all("verifier-drawn.v1").map((one) => `drawn ${one.stage}.${one.place}`),
    ...dossier.all("stage-sealed.v1").map((one) => `sealed ${one.stage}.${one.retry}`),
    ...job.outcome.claims.map((_, number) => `claim ${number}.0`),
    ...(dossier.isCutShort ? [] : dossier.all("stage-bound.v1").map((one) => `bound ${one.stage}.0`)),
  ];
  const unused = said.find((one) => !run.used.has(one));
  if (unused) refuse(`what the record has beyond that outcome: it says ${unused}; it must be nothing`);
}

/** The machine over the record; interruptions come before the event of that number. */
async function play(job, orders, deepenedAt, equivocatedAt) {
  const generator = {
    participant: job.recorded.generator,
    stage: GENERATOR_STAGE,
    root: (await job.result()).body.root,
    corner: await job.fullCorner(),
  };
  const { rules, audit } = job.genesis;
  const dispute = isCommittee(rules)
    ? new CommitteeDispute(generator, rules, audit.sample_count)
    : new Dispute(generator, rules.stage_max, audit.sample_count);
  const run = { dispute, compared: [], used: new Set(), eventCount: 0 };
  while (run.eventCount < EVENTS_MAX) {
    if (run.eventCount === deepenedAt) run.dispute.onDeepened();
    if (run.eventCount === equivocatedAt) run.dispute.onEquivocated();
    if (run.dispute.phase === "decided") break;
    const handle = await findEvent(job, run, orders);
    if (handle === null) break;
    run.eventCount += 1;
    const commands = [handle() ?? []].flat();
    while (commands.length) commands.push(...[(await execute(job, run, commands.shift())) ?? []].flat());
  }
  return run;
}

/** Hold what the machine asks for against what was said, and compare where it asks to; the next command, or null. */
async function execute(job, run, command) {
  const { dossier } = job;
  if (command.kind === "hold") {
    const drawn = dossier.find("verifier-drawn.v1", { stage: command.stage, place: command.place });
    if (drawn?.participant !== command.participant) {
      refuse(`stage ${command.stage} asks for ${command.participant}, ${drawn?.participant ?? "nobody"} was drawn`);
    }
    run.used.add(`drawn ${command.stage}.${command.place}`);
    return null;
  }
  const sealed = dossier.get("stage-sealed.v1", { stage: command.stage, retry: command.retry });
  if (command.kind === "seal") {
    const parties = sealed.parties.map((one) => [one.participant, one.stage, one.root, one.corner]);
    const stated = [sealed.corner, sealed.sample_count, parties];
    if (!isSame(stated, [command.corner, command.sampleCount, command.parties])) {
      refuse(`stage ${command.stage}, look ${command.retry + 1}: not the parties, corner or samples of the rules`);
    }
    run.used.add(`sealed ${command.stage}.${command.retry}`);
    return null;
  }
  const [ours, theirs] = [findParty(sealed, command.ours), findParty(sealed, command.theirs)];
  invariant(ours && theirs, "the sealed parties were compared with the machine's");
  const { verdict } = await compareParties(job, sealed, ours, theirs);
  run.compared.push([command.stage, command.retry, command.ours, command.theirs]);
  const { ourSeat, against } = command;
  return run.dispute.onCompared({ stage: command.stage, retry: command.retry, ours: ourSeat, against, verdict });
}

/** What the record has for the machine in its state, as something to be done; null where it has nothing. */
async function findEvent(job, run, orders) {
  const { dispute } = run;
  const { dossier } = job;
  const look = { stage: dispute.stage, retry: dispute.retry };
  switch (dispute.phase) {
    case "waiting": {
      if (job.audit === null) return null;
      const isAsked = job.audit.reason === "challenge";
      return () => dispute.onAuditOpened({ order: orders.get(1) ?? [], corner: job.audit.corner, isAsked });
    }
    case "drawing": {
      const order = orders.get(dispute.stage);
      if (!order) return null;
      run.used.add(`bound ${dispute.stage}.0`);
      const drawn = await drawRecheck(job, dispute.stage);
      return () => dispute.onOrderDrawn({ stage: dispute.stage, order, ...drawn });
    }
    case "holding":
      return findHold(job, dispute);
    case "sealing": {
      const claim = await findClaim(job, run, look);
      return claim === null ? () => dispute.onSealExpired(look) : () => dispute.onClaim(claim);
    }
    case "opening": {
      const closed = dossier.find("openings-closed.v1", look);
      if (closed === null) return null;
      const positions = unpackTokens(closed.positions);
      return () => dispute.onOpeningsClosed({ ...look, positions, opened: closed.opened });
    }
    default:
      return null;
  }
}

/** The ledger's word on a stake that is asked for: what was locked first; of refusals, that whose seat was drawn for next. */
function findHold({ dossier }, dispute) {
  const { asked } = dispute;
  const refused = [];
  for (const [name, seat] of dispute.pending) {
    const which = { purpose: "verifier_stake", stage: seat, party: name };
    const answer = { participant: name, stage: seat };
    if (dossier.find("hold-placed.v1", which) !== null) return () => dispute.onHold({ ...answer, isPlaced: true });
    if (dossier.find("hold-refused.v1", which) !== null) refused.push(answer);
  }
  if (!refused.length) return null;
  const nextPlace = ({ stage: seat }) =>
    dossier
      .all("verifier-drawn.v1")
      .filter((one) => one.stage === seat && one.place >= asked)
      .reduce((least, one) => Math.min(least, one.place), Infinity);
  const [first] = refused.map((answer) => [nextPlace(answer), answer]).sort(([one], [other]) => compareNumbers(one, other));
  return () => dispute.onHold({ ...first[1], isPlaced: false });
}

/** The next claim of the stage: of those that sealed it, or of those that were too few to; null where there is none. */
async function findClaim(job, run, look) {
  const { dispute } = run;
  const { rules } = job.genesis;
  const taken = dispute.sealed ?? [];
  const isOwn = (seat) => getStageOf(rules, seat) === look.stage && !taken.includes(seat);
  const toClaim = (name, seat, body) => ({
    participant: name,
    stage: seat,
    retry: look.retry,
    corner: body.corner,
    leafCount: body.leaf_count,
    root: body.root,
  });
  const sealed = job.dossier.find("stage-sealed.v1", look);
  if (sealed !== null) {
    const own = sealed.parties.slice(1).find((party) => isOwn(party.stage));
    return own === undefined ? null : toClaim(own.participant, own.stage, own);
  }
  for (const [number, data] of (job.outcome?.claims ?? []).entries()) {
    const { sender, body } = await openEnvelope(data, job.network, "claim-sealed.v1");
    if (!isSame([body.job_id, body.attempt], [job.recorded.job_id, job.recorded.attempt])) refuse("a claim about another job");
    const seat = dispute.seats.find((one) => one.participant === sender && getToldStage(rules, one.stage) === body.stage);
    if (seat === undefined || body.retry !== look.retry || !isOwn(seat.stage)) continue;
    if (body.stack !== job.model.entry.stack) refuse(`a claim of another stack than the model's, ${body.stack}`);
    run.used.add(`claim ${number}.0`);
    return toClaim(sender, seat.stage, body);
  }
  return null;
}

// --- steps R17 and R18: what the rules pay, and what was paid -----------------------------------------------------

const REFUNDED = "refunded";
const DEPOSIT_REFUSED = "the deposit was refused: nothing was held, nothing is paid";

async function checkPayoff(job, found) {
  const { dossier, outcome } = job;
  const payout = dossier.find("payout-settled.v1");
  if (payout === null) {
    if (!dossier.isRefused) refuse("the job is not settled: there is no receipt of it yet");
    if (dossier.all("hold-placed.v1").length || job.isCommitted) refuse("a job whose deposit was refused has holds");
    return found.skip(DEPOSIT_REFUSED);
  }
  if (payout.case === REFUNDED) {
    if (job.isCommitted) refuse("a job with a recorded commitment was refunded instead of settled");
    found.note("why it was given up", dossier.get("job-abandoned.v1").reason);
    const costs = [payout.generation_micro, payout.verification_micro];
    found.equal("costs of a job that was not done", costs, [0n, 0n]);
    found.equal("who is slashed", payout.slashed, []);
    return undefined;
  }
  found.equal("how the job ended", payout.case, outcome?.case ?? "no_challenge");
  found.equal("attempt that is paid", payout.attempt, job.recorded.attempt);
  found.equal("stages", payout.stage, outcome?.stage ?? 0);
  const { cg, cv } = await computeCosts(job);
  found.equal("Cg, micro-units", payout.generation_micro, cg);
  found.equal("Cv of the corner", payout.verification_micro, cv);
  const settlement = await computeSettlement(job);
  found.equal("what was in the pool", payout.pool_micro, settlement.pool);
  found.equal("who is slashed", payout.slashed, settlement.slashed);
  return undefined;
}

/** Cg of the committed output, and Cv of the corner: the outcome's, else the whole job (9.1). */
async function computeCosts(job) {
  const covered = job.outcome?.corner ?? (await job.fullCorner());
  const { prices, schema } = job.model;
  return {
    cg: computeGenerationCost(prices, (await job.prompt()).length, (await job.output()).length),
    cv: computeVerificationCost(prices, covered.layer_max, covered.position_max, schema.layer_count),
  };
}

async function computeSettlement(job) {
  const { outcome } = job;
  const { rules } = job.genesis;
  const settle = isCommittee(rules) ? settleCommittee : settleUnifiedPool;
  return settle(rules, {
    ...(await computeCosts(job)),
    case: outcome?.case ?? "no_challenge",
    user: job.admitted.user,
    generator: job.recorded.generator,
    verifiers: outcome?.verifiers ?? [],
    deciding: outcome?.deciding ?? null,
    prior: outcome?.prior ?? null,
    isChallenged: outcome?.is_challenged ?? false,
    reserve: job.dossier.get("payout-settled.v1").reserve_micro,
  });
}

async function checkPayout(job, found) {
  const payout = job.dossier.find("payout-settled.v1");
  if (payout === null) return found.skip(job.dossier.isRefused ? DEPOSIT_REFUSED : "the job is not settled yet");
  const stated = new Map(payout.lines.map((line) => [line.account, [line.amount_micro, line.held_micro]]));
  found.equal("accounts, each once", stated.size, payout.lines.length);
  const expected = payout.case === REFUNDED ? computeRefundLines(job) : await computeLines(job);
  for (const account of [...new Set([...stated.keys(), ...expected.keys()])].sort(compareText)) {
    const nothing = [0n, 0n];
    found.equal(`${account}: paid, and put in`, stated.get(account) ?? nothing, expected.get(account) ?? nothing);
  }
  const paid = sum(payout.lines.map((line) => line.amount_micro));
  found.equal("left in the pool, micro-units", payout.pool_micro - paid, 0n);
  found.equal("put in by somebody", sum(payout.lines.map((line) => line.held_micro)), payout.pool_micro);
  const placed = new Map();
  for (const hold of listHolds(job)) placed.set(hold.party, (placed.get(hold.party) ?? 0n) + hold.amount_micro);
  for (const line of payout.lines) {
    if (line.account === RESERVE) {
      const has = payout.reserve_micro;
      found.holds("drawn from the reserve", line.held_micro <= has, line.held_micro, `at most ${has}`);
      continue;
    }
    const locked = placed.get(line.account) ?? 0n;
    const what = `${line.account}: put in ${line.held_micro} of what was locked`;
    found.holds(what, line.held_micro <= locked, locked, `at least ${line.held_micro}`);
  }
  checkAnswers(job, found);
  return undefined;
}

/** The ledger answered every request for a hold, and nothing that was not asked for. */
function checkAnswers({ dossier }, found) {
  const nameOf = (one) => [one.purpose, one.attempt, one.stage, one.party, one.publication].join();
  const amountOf = (one) => `${nameOf(one)} ${one.amount_micro}`;
  const requests = [ROUTER_HOLDS, VERIFIER_HOLDS].flatMap((topic) => dossier.all(topic));
  const [asked, askedNames] = [new Set(requests.map(amountOf)), new Set(requests.map(nameOf))];
  const placed = new Set(dossier.all("hold-placed.v1").map(amountOf));
  const refused = new Set(dossier.all("hold-refused.v1").map(nameOf));
  const isAnswered = (one) => placed.has(one) || refused.has(one.slice(0, one.lastIndexOf(" ")));
  found.equal("holds that were asked for and not answered", [...asked].filter((one) => !isAnswered(one)).length, 0);
  const unasked = [...placed].filter((one) => !asked.has(one)).concat([...refused].filter((one) => !askedNames.has(one)));
  found.equal("answers about holds that were not asked for", unasked.length, 0);
}

async function computeLines(job) {
  const { cg, cv } = await computeCosts(job);
  const products = computeProducts(job.genesis.rules, cg, cv);
  const held = new Map([[job.admitted.user, products.deposit]]);
  const put = (name, amount) => held.set(name, (held.get(name) ?? 0n) + amount);
  put(job.recorded.generator, products.bCg);
  for (const one of job.outcome?.verifiers ?? []) put(one.participant, products.bCv);
  const { payouts: paid, drawn = 0n } = await computeSettlement(job);
  put(RESERVE, drawn);
  const lines = [...new Set([...held.keys(), ...paid.keys()])].map((account) => [
    account,
    [paid.get(account) ?? 0n, held.get(account) ?? 0n],
  ]);
  return new Map(lines.filter(([, amounts]) => amounts.some((amount) => amount !== 0n)));
}

/** Every hold, the first of those that are repeated. */
function listHolds(job) {
  const seen = new Set();
  return job.dossier.all("hold-placed.v1").filter((hold) => {
    const key = [hold.purpose, hold.attempt, hold.stage, hold.party].join();
    return !seen.has(key) && seen.add(key);
  });
}

/** Every hold as it goes back; the stake of an attempt that was charged for has gone back before. */
function computeRefundLines(job) {
  const charged = new Set(job.dossier.all("attempt-charged.v1").map((one) => `${one.attempt} ${one.generator}`));
  const back = new Map();
  for (const hold of listHolds(job)) {
    if (hold.purpose === "generator_stake" && charged.has(`${hold.attempt} ${hold.party}`)) continue;
    back.set(hold.party, (back.get(hold.party) ?? 0n) + hold.amount_micro);
  }
  return new Map([...back].filter(([, amount]) => amount !== 0n).map(([party, amount]) => [party, [amount, amount]]));
}

// --- the steps in their order (14.3) ------------------------------------------------------------------------------

/** Numbers and titles of the steps. R8.pairing is a part of R8 that needs curve arithmetic. */
export const STEPS = Object.freeze([
  ["R1", "size, form and canonical spelling"],
  ["R2", "the network, operator and beacon chain that you pinned"],
  ["R3", "every envelope, its signer, its job"],
  ["R4", "the user's submission, the model, the job id, the deposit"],
  ["R5", "the router's lease is for this submission"],
  ["R6", "the generator's commitment binds lease, tokens and output"],
  ["R7", "the commitment is in the log, before its round"],
  ["R8", "the beacon's rounds are the chain's"],
  ["R8.pairing", "the rounds' BLS signatures"],
  ["R9", "why the job was audited, or was not"],
  ["R10", "how deep the audit went"],
  ["R11", "the verifiers were drawn by stake"],
  ["R12", "the claims were sealed before the positions could be known"],
  ["R13", "the positions were drawn"],
  ["R14", "the opened rows are those that were committed"],
  ["R15", "the comparisons, in exact integers"],
  ["R16", "the outcome is the rules'"],
  ["R17", "the payoffs are the rules'"],
  ["R18", "everybody was paid so, and the pool is empty"],
]);

const JOB_CHECKS = [
  checkSubmission,
  checkLease,
  checkCommitment,
  checkLog,
  checkRounds,
  checkPairings,
  checkAudit,
  checkCorner,
  checkSortition,
  checkClaims,
  checkPositions,
  checkOpenings,
  checkComparisons,
  checkOutcome,
  checkPayoff,
  checkPayout,
];

/**
 * Judge a receipt in either form, whatever the bytes are; it rejects for trust roots that are none (TrustError) only.
 *
 * options.bls12_381: that export of `@noble/curves/bls12-381.js`; null not to look for it. Where it is not given, it is
 * imported if it can be. options.onStep is called with each step when it is judged.
 */
export async function verifyReceipt(bytesOrText, trustRoots, options = {}) {
  const trust = readTrust(trustRoots);
  const data = typeof bytesOrText === "string" ? UTF8.encode(bytesOrText) : new Uint8Array(bytesOrText);
  const curves = once(async () => (options.bls12_381 === undefined ? importCurves() : options.bls12_381));
  const opened = {};
  const head = [
    (found) => {
      opened.receipt = decodeReceipt(data);
      found.note("bytes", data.length);
      found.note("envelopes of the record", opened.receipt.record.length);
    },
    async (found) => Object.assign(opened, await checkTrust(opened.receipt, trust, found, await curves())),
    async (found) => {
      opened.job = await openCase(opened, trust, found);
      opened.job.curves = curves;
    },
  ];
  const checks = [...head, ...JOB_CHECKS.map((check) => (found) => check(opened.job, found))];
  const steps = [];
  for (const [at, [id, title]] of STEPS.entries()) {
    const isReached = steps.every((step) => step.status !== "failed");
    steps.push(isReached ? await runStep(id, title, checks[at]) : notReached(id, title));
    options.onStep?.(steps.at(-1));
  }
  const failed = steps.find((step) => step.status === "failed")?.id ?? null;
  return {
    valid: failed === null,
    complete: steps.every((step) => step.status === "ok" || step.status === "not-applicable"),
    failed,
    jobId: opened.job ? toHex(opened.job.dossier.jobId) : null,
    networkId: opened.network ? toHex(opened.network) : null,
    case: opened.job ? getEnding(opened.job.dossier) : "",
    steps,
  };
}

const notReached = (id, title) => ({
  id,
  title,
  status: "not-checked",
  detail: "not reached: an earlier step failed",
  compared: [],
  isReached: false,
});

async function runStep(id, title, check) {
  const found = new Findings();
  try {
    await check(found);
  } catch (error) {
    // What nobody thought of is a failure that says so, never a pass, never a crash.
    const isInternal = !(error instanceof Refusal);
    const detail = isInternal ? `${error?.name}: ${error?.message}`.slice(0, SHOWN_CHARS_MAX) : error.message;
    return { id, title, status: "failed", detail, compared: found.compared, isReached: true, isInternal };
  }
  const detail = found.reason || found.compared.map(({ what, value }) => `${what}: ${value}`).join("; ");
  return { id, title, status: found.status, detail, compared: found.compared, isReached: true };
}

const getEnding = (dossier) => dossier.find("payout-settled.v1")?.case ?? (dossier.isRefused ? "refused" : "");

async function importCurves() {
  try {
    return (await import("@noble/curves/bls12-381.js")).bls12_381;
  } catch {
    return null;
  }
}

/** R2: the genesis is that of the pinned network, with the pinned operator and the pinned beacon chain. */
async function checkTrust(receipt, trust, found, curves) {
  const network = await sha256(ascii("pocache/genesis/v1\0"), receipt.genesis);
  found.equal("the network, SHA-256 of its genesis", toHex(network), trust.network_id);
  const genesis = await readGenesis(receipt.genesis, curves);
  found.equal("the operator", genesis.signers.operator, trust.operator);
  const chain = genesis.beaconChain;
  found.equal("the beacon's chain hash", toHex(chain.hash), trust.chain_hash);
  found.equal("its scheme", chain.schemeName, trust.chain_scheme);
  found.equal("its public key", toHex(chain.publicKey), trust.chain_public_key);
  return { network, genesis };
}

/** R3: every envelope, each in its one spelling, by its signer, about this one job, in its place. */
async function openCase({ receipt, network, genesis }, trust, found) {
  const openAll = async (envelopes, topics) => {
    const opened = [];
    for (const one of envelopes) opened.push(await openMessage(one, network, genesis, topics));
    return opened;
  };
  const record = await openAll(receipt.record, JOB_TOPICS);
  for (const [at, one] of record.entries()) {
    const before = record[at - 1];
    if (before && (before.topic.order - one.topic.order || compareBytes(before.id, one.id)) > 0) {
      refuse("the record is not in its order: by topic, then by envelope id");
    }
  }
  const dossier = new Dossier(record);
  found.holds("messages about the job", dossier.count > 0, dossier.count, "at least one");
  const model = await openModel(receipt.model, network);
  await openMessage(receipt.model, network, genesis, [MODEL_TOPIC]);
  const rounds = await openNumbered("rounds", receipt.rounds, ROUND_TOPIC, "round_number", openAll);
  const snapshots = await openNumbered("snapshots", receipt.snapshots, SNAPSHOT_TOPIC, "number", openAll);
  const epochs = await openNumbered("epochs", receipt.epochs, EPOCH_TOPIC, "number", openAll);
  if (epochs.size > 2) refuse(`${epochs.size} epochs where two are enough`);
  let log = null;
  if (receipt.log !== null) {
    if (!dossier.all("commitment-recorded.v1").length) refuse("proofs from the log, for a job without a commitment");
    const { checkpoint, inclusion, latest, consistency, cosigned } = receipt.log;
    const [entry, last] = await openAll([checkpoint, latest], [CHECKPOINT_TOPIC]);
    log = { entry: entry.body, latest: last.body, inclusion, consistency, cosigned };
  }
  found.note("rounds, snapshots, epochs", [rounds.size, snapshots.size, epochs.size]);
  return new Case({ network, genesis, trust, dossier, model, rounds, snapshots, epochs: [...epochs.values()], log });
}

/** Bodies by their number, which ascends, each once. */
async function openNumbered(name, envelopes, topic, numberField, openAll) {
  const opened = await openAll(envelopes, [topic]);
  const numbers = opened.map((one) => one.body[numberField]);
  if (numbers.some((number, at) => at > 0 && numbers[at - 1] >= number)) refuse(`the ${name} do not ascend, each once`);
  return new Map(opened.map((one) => [one.body[numberField], one.body]));
}

// --- command line -------------------------------------------------------------------------------------------------

const USAGE = "usage: node verify.js RECEIPT --trust FILE [--json] [--curves MODULE]";

async function runCommand(argv) {
  const { readFile } = await import("node:fs/promises");
  const [files, options] = [[], { json: false }];
  for (let at = 0; at < argv.length; at += 1) {
    if (argv[at] === "--json") options.json = true;
    else if (argv[at] === "--trust" || argv[at] === "--curves") {
      options[argv[at].slice(2)] = argv[at + 1];
      at += 1;
    } else files.push(argv[at]);
  }
  if (files.length !== 1 || files[0].startsWith("--") || !options.trust) throw new TrustError(USAGE);
  const read = (file) => readFile(file).catch((error) => Promise.reject(new TrustError(`cannot read ${file}: ${error.code}`)));
  const [receipt, trust] = [await read(files[0]), await read(options.trust)];
  const report = await verifyReceipt(receipt, new Uint8Array(trust), await readCurves(options.curves));
  process.stdout.write(options.json ? `${JSON.stringify(report, null, 1)}\n` : writeReport(report));
  return report.valid ? 0 : 1;
}

async function readCurves(path) {
  if (path === undefined) return {};
  const { pathToFileURL } = await import("node:url");
  try {
    return { bls12_381: (await import(pathToFileURL(path).href)).bls12_381 };
  } catch (error) {
    throw new TrustError(`cannot import ${path}: ${error.message}`);
  }
}

function writeReport({ valid, complete, failed, case: ended, steps }) {
  const lines = steps.map(({ id, title, status, detail, compared }) => {
    const shown = status === "ok" ? compared.map(({ what, value }) => `\n    ${what}: ${value}`).join("") : `\n    ${detail}`;
    return `${id.padEnd(10)} ${status.padEnd(14)} ${title}${shown}\n`;
  });
  const open = complete ? "" : ", but not everything could be checked";
  const verdict = valid ? `valid${open}; the job ended: ${ended}` : `not valid: ${failed} failed`;
  return `${lines.join("")}${verdict}\n`;
}

async function isMain() {
  if (typeof process === "undefined" || !process.versions?.node || !process.argv[1]) return false;
  const [{ realpathSync }, { fileURLToPath }] = [await import("node:fs"), await import("node:url")];
  try {
    return realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url));
  } catch {
    return false;
  }
}

if (await isMain()) {
  try {
    process.exitCode = await runCommand(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof TrustError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 2;
  }
}
