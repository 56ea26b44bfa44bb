// An edge that knows nothing of NeuCODEX but the .proto file and the documented packet form.
//
// node client.mjs PROTO ADDRESS CASE, with the facts on standard input as JSON: digest (hex), alpha,
// checksum (NONE, CRC16), samples (per sample, per timestep: the packed code bits, hex). What
// happened goes to standard output as JSON.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [protoFile, address, name] = process.argv.slice(2);
const facts = JSON.parse(readFileSync(0, "utf8"));
const definition = loader.loadSync(protoFile, { keepCase: true, enums: String, defaults: true });
const { CoInference } = grpc.loadPackageDefinition(definition).neucodex.v1;
const client = new CoInference(address, grpc.credentials.createInsecure());

const open = (fields = {}) => ({
  open: {
    protocol_version: 1,
    model_digest: Buffer.from(facts.digest, "hex"),
    checksum: facts.checksum,
    samples_in_flight: 1,
    settings: { alpha: facts.alpha, window: 1, steps_per_packet: 1, codec: "raw" },
    ...fields,
  },
});

// CRC-16/CCITT, continued from an earlier check.
function crc16(bytes, check) {
  for (const byte of bytes) {
    check ^= byte << 8;
    for (let bit = 0; bit < 8; bit++) {
      check = (check & 0x8000 ? (check << 1) ^ 0x1021 : check << 1) & 0xffff;
    }
  }
  return check;
}

function* packets(number, frames) {
  let check = 0xffff;
  for (const [timestep, hex] of frames.entries()) {
    const code = Buffer.from(hex, "hex");
    const first = timestep === 0 ? 1 : 0;
    const header = (timestep % 8) | (first << 3) | (number % 4 << 4) | (1 << 6);
    check = crc16(code, check);
    const tail = facts.checksum === "CRC16" ? [check >> 8, check & 0xff] : [];
    yield Buffer.from([header, ...code, ...tail]);
  }
}

// A stream whose messages are awaited one by one; its end is the status.
function stream(metadata = new grpc.Metadata(), options = {}) {
  const call = client.Infer(metadata, options);
  const arrived = [];
  let wake = () => {};
  const status = new Promise((resolve) => call.on("status", resolve));
  call.on("data", (message) => { arrived.push(message); wake(); });
  call.on("error", () => {});
  call.on("end", () => { arrived.push(null); wake(); });
  const next = async () => {
    while (arrived.length === 0) await new Promise((resolve) => { wake = resolve; });
    return arrived.shift();
  };
  return { call, next, status };
}

const told = (status) => ({
  code: grpc.status[status.code],
  details: status.details,
  pushback: status.metadata.get("grpc-retry-pushback-ms"),
});

async function wholeSamples(metadata) {
  const { call, next, status } = stream(metadata);
  call.write(open());
  const { opened } = await next();
  const verdicts = [];
  for (const [number, frames] of facts.samples.entries()) {
    for (const packet of packets(number, frames)) {
      call.write({ packets: [packet] });
      const message = await next();
      if (message.errors.length) return { error: message.errors[0] };
      verdicts.push(...message.verdicts);
    }
  }
  call.end();
  return { opened, verdicts, ...told(await status) };
}

const cases = {
  ping_pong: () => wholeSamples(),

  async empty_stream() {
    const { call, status } = stream();
    call.end();
    return told(await status);
  },

  async cancel_after_begin() {
    const { call, status } = stream();
    call.cancel();
    return told(await status);
  },

  async cancel_after_first_response() {
    const { call, next, status } = stream();
    call.write(open());
    await next();
    call.write({ packets: [packets(0, facts.samples[0]).next().value] });
    await next();
    call.cancel();
    return told(await status);
  },

  async timeout_on_sleeping_server() {
    const { call, next, status } = stream(undefined, { deadline: Date.now() + 500 });
    call.write(open());
    await next();
    return told(await status);
  },

  async status_code_and_message() {
    const { call, status } = stream();
    call.write(open({ model_digest: Buffer.alloc(32, 7) }));
    return told(await status);
  },

  async overload() {
    const { call, status } = stream();
    call.write(open());
    return told(await status);
  },

  async custom_metadata() {
    const metadata = new grpc.Metadata();
    metadata.set("x-neucodex-note", "n".repeat(2000));
    metadata.set("x-neucodex-note-bin", Buffer.alloc(2000, 0xab));
    return wholeSamples(metadata);
  },

  async huge_metadata() {
    const metadata = new grpc.Metadata();
    metadata.set("x-neucodex-note", "n".repeat(1 << 18));
    const { call, status } = stream(metadata);
    call.write(open());
    return told(await status);
  },

  unimplemented_method: () => unimplemented("/neucodex.v1.CoInference/Nothing"),

  unimplemented_service: () => unimplemented("/neucodex.v1.Nothing/Infer"),

  describe: () =>
    new Promise((resolve, reject) =>
      client.Describe({}, (error, reply) => (error ? reject(error) : resolve(reply))),
    ),
};

function unimplemented(path) {
  const same = (value) => value;
  return new Promise((resolve) => {
    const call = client.makeUnaryRequest(path, same, same, Buffer.alloc(0), () => {});
    call.on("status", (status) => resolve(told(status)));
  });
}

const found = await cases[name]();
const plain = (_, value) =>
  value && value.type === "Buffer" ? Buffer.from(value.data).toString("hex") : value;
process.stdout.write(JSON.stringify(found, plain));
client.close();
