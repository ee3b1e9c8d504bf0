"""Train the best language model that fits in 16,000,000 bytes: PyTorch (CUDA with DDP, MPS, CPU).

    python train_gpt.py --help                                  all settings
    torchrun --standalone --nproc_per_node=8 train_gpt.py       the official run, 8xH100

Its twin is train_gpt_mlx.py: same sections, same names. Everything that touches no device (data, schedule, initial weights,
artifact, the run itself) is written once, in common/.
"""
import contextlib
import datetime
import os
import sys
import time

try:
	import torch
	import torch.distributed as dist
	import torch.nn.functional as F
	from torch import nn
	from torch.nn.parallel import DistributedDataParallel
except ModuleNotFoundError as missing:
	if __name__ != "__main__":
		raise
	print(f"error: {missing}: `make install BACKEND=torch` or `pip install '.[torch]'` provides PyTorch", file=sys.stderr)
	sys.exit(2)
import numpy as np


# ===== common/settings.py
import dataclasses
import difflib
import re

class UserError(Exception):

	status = "failed"

def setting(default, meaning, low=None, high=None, choices=None):
	return dataclasses.field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})

@dataclasses.dataclass(frozen=True)
class ModelSettings:
	vocab_size: int = setting(1024, "token ids; must match the tokenizer", 2, 65536)
	num_layers: int = setting(9, "blocks", 1, 256)
	model_dim: int = setting(512, "width", 4, 16384)
	num_heads: int = setting(8, "query heads", 1, 256)
	num_kv_heads: int = setting(4, "key and value heads", 1, 256)
	mlp_mult: int = setting(2, "hidden width of the MLP over the width", 1, 64)
	tie_embeddings: bool = setting(True, "the head is the token embedding")
	rope_base: float = setting(10000.0, "base of the rotary frequencies", 1, 1e12)
	logit_softcap: float = setting(30.0, "logits are c * tanh(logits / c)", 1e-3, 1e6)
	rms_norm_eps: float = setting(1e-6, "epsilon of every RMSNorm", 0, 1)
	train_seq_len: int = setting(1024, "tokens of one row", 1, 2**20)

@dataclasses.dataclass(frozen=True)
class Settings(ModelSettings):
	data_path: str = setting("data/fineweb10B_sp1024", "folder of the token shards *_train_*.bin and *_val_*.bin")
	tokenizer_path: str = setting("", "SentencePiece model or `bytes`; empty: what DATA_PATH/manifest.json names")
	run_id: str = setting("", "the run's folder is runs/RUN_ID; empty: date and time")
	seed: int = setting(1337, "key of the initial weights", 0, 2**63 - 1)
	qk_gain_init: float = setting(1.5, "initial gain of the normed queries, per head", -100, 100)
	tied_embed_init_std: float = setting(0.005, "standard deviation of the initial tied embedding", 0, 10)
	iterations: int = setting(20000, "optimizer steps", 0, 10**9)
	max_wallclock_seconds: float = setting(600.0, "limit of the training time, validation not counted; 0: none", 0, 1e9)
	warmdown_fraction: float = setting(1.0, "last part of the run, in which learning rates fall to 0", 0, 1)
	warmup_steps: int = setting(3, "steps that only warm up, undone before the clock starts", 0, 1000)
	train_batch_tokens: int = setting(524288, "tokens of one optimizer step, over all ranks", 1, 2**31)
	micro_batch_tokens: int = setting(65536, "tokens of one pass on one rank: memory only, never the result", 1, 2**31)
	matrix_lr: float = setting(0.04, "Muon", 0, 100)
	tied_embed_lr: float = setting(0.05, "Adam: embedding when it is the head too", 0, 100)
	embed_lr: float = setting(0.6, "Adam: embedding when the head is untied", 0, 100)
	head_lr: float = setting(0.008, "Adam: untied head", 0, 100)
	scalar_lr: float = setting(0.04, "Adam: scales, gains, mixes and skip weights", 0, 100)
	muon_momentum: float = setting(0.95, "momentum of Muon (Nesterov)", 0, 0.9999)
	muon_momentum_warmup_start: float = setting(0.85, "its value at step 0", 0, 0.9999)
	muon_momentum_warmup_steps: int = setting(500, "steps until muon_momentum is reached", 0, 10**9)
	muon_backend_steps: int = setting(5, "Newton-Schulz iterations", 1, 50)
	beta1: float = setting(0.9, "Adam", 0, 0.9999)
	beta2: float = setting(0.95, "Adam", 0, 0.9999999)
	adam_eps: float = setting(1e-8, "Adam", 1e-30, 1)
	grad_clip_norm: float = setting(0.0, "global gradient norm is cut to this; 0: off", 0, 1e9)
	val_loss_every: int = setting(1000, "steps between validations; 0: only at the end", 0, 10**9)
	val_tokens_limit: int = setting(0, "tokens of a partial validation; 0: all", 0, 2**40)
	train_log_every: int = setting(200, "steps between log lines after the first ten", 1, 10**9)
	compute_dtype: str = setting("auto", "dtype of the matrix products; float64: reference mode, on the CPU",
								 choices=("auto", "float32", "bfloat16", "float64"))
	compile: bool = setting(True, "compile the step")
	device: str = setting("auto", "which device to use", choices=("auto", "cpu", "gpu"))

def parse_setting(field, text):
	kind, low, high, choices = field.type, *(field.metadata[key] for key in ("low", "high", "choices"))
	try:
		value = ("0", "1", "false", "true", "no", "yes").index(text.strip().lower()) % 2 == 1 if kind is bool else kind(text)
		valid = value in choices if choices else low is None or low <= value <= high
	except ValueError:
		valid = False
	if not valid:
		numbers = f"number from {low} to {high}"
		words = {bool: "0 or 1", int: f"a whole {numbers}", float: f"a {numbers}", str: f"one of {', '.join(choices or ())}"}
		raise ValueError(f"{field.name.upper()}={text} is not {words[kind]}")
	return value

def setting_conflicts(s):
	wrong = [f"{a.upper()}={getattr(s, a)} must be a multiple of {b.upper()}={getattr(s, b)}"
			 for a, b in (("model_dim", "num_heads"), ("num_heads", "num_kv_heads"), ("train_batch_tokens", "train_seq_len"))
			 if getattr(s, a) % getattr(s, b)]
	if s.model_dim // s.num_heads % 2:
		wrong.append(f"MODEL_DIM={s.model_dim} / NUM_HEADS={s.num_heads} must be even: rotary embedding turns pairs")
	if s.micro_batch_tokens < s.train_seq_len:
		wrong.append(f"MICRO_BATCH_TOKENS={s.micro_batch_tokens} is less than one row (TRAIN_SEQ_LEN={s.train_seq_len})")
	if s.val_tokens_limit == 1:
		wrong.append("VAL_TOKENS_LIMIT=1 leaves nothing to score: use 0 (all) or more")
	if not re.fullmatch(r"(?!\.)[\w.-]{0,60}", s.run_id):
		wrong.append(f"RUN_ID={s.run_id} must be a plain folder name: at most 60 letters, digits, _ - .")
	if s.compute_dtype == "float64" and s.device == "gpu":
		wrong.append("COMPUTE_DTYPE=float64 runs on the CPU: use DEVICE=cpu or auto")
	return wrong

def load_settings(kind, flags, environment, warn):
	fields = {f.name: f for f in dataclasses.fields(kind)}
	known = {name.upper(): name for name in fields}
	text = {known[name]: value for name, value in environment.items() if name in known}
	for name in sorted(environment.keys() - known):
		for near in difflib.get_close_matches(name, known, 1, 0.9):
			warn(f"{name} is set but is no setting; did you mean {near}?")
	wrong, values, flags = [], {}, list(flags)
	while flags:
		flag, equals, value = flags.pop(0).partition("=")
		name = flag[2:].replace("-", "_").lower()
		if not equals:
			value = flags.pop(0) if flags and flags[0][:2] != "--" else None
		if flag[:2] != "--" or name not in fields:
			near = difflib.get_close_matches(name, fields, 1)
			hint = f"did you mean --{near[0].replace('_', '-')}?" if near else "--help lists all settings"
			wrong.append(f"{flag} is no setting; {hint}")
		elif value is None:
			wrong.append(f"{flag} needs a value")
		else:
			text[name] = value
	for name, given in text.items():
		try:
			values[name] = parse_setting(fields[name], given)
		except ValueError as error:
			wrong.append(str(error))
	settings = kind(**values)
	wrong += setting_conflicts(settings)
	if wrong:
		raise UserError("\n  ".join(["these settings cannot be used:"] * (len(wrong) > 1) + wrong))
	return settings

def changed_settings(settings):
	return {name: value for name, value in vars(settings).items() if value != getattr(type(settings), name)}

def model_settings(settings):
	return {f.name: getattr(settings, f.name) for f in dataclasses.fields(ModelSettings)}

def settings_table(kind):
	return [(f.name.upper(), str(int(f.default) if f.type is bool else f.default),
			 f.metadata["meaning"] + (f" ({', '.join(choices)})" if (choices := f.metadata["choices"]) else ""))
			for f in dataclasses.fields(kind)]

def settings_help(kind, usage):
	lines = [f"  {'--' + name.lower().replace('_', '-'):<30} {default:<24} {meaning}" for name, default, meaning in settings_table(kind)]
	return "\n".join([usage, "Each setting is a flag, or an environment variable (ITERATIONS=200).", "", *lines])


# ===== common/batches.py
import bisect

class TokenStream:

	def __init__(self, shards):
		self.shards, self.ends = shards, np.cumsum([*map(len, shards)]).tolist()
		self.length = self.ends[-1]

	def read(self, start, count):
		parts = [np.empty(0, np.int32)]
		while count:
			start %= self.length
			index = bisect.bisect_right(self.ends, start)
			parts.append(self.shards[index][start - self.ends[index]:][:count])
			start += len(parts[-1])
			count -= len(parts[-1])
		return np.concatenate(parts)

def rank_rows(settings, rank, world_size):
	rows = settings.train_batch_tokens // settings.train_seq_len
	if rows % world_size:
		raise UserError(f"TRAIN_BATCH_TOKENS={settings.train_batch_tokens} is {rows} rows of TRAIN_SEQ_LEN={settings.train_seq_len}, "
						f"which {world_size} ranks cannot share: use a number of ranks that divides {rows}")
	rows //= world_size
	return rank * rows, rows

def step_rows(stream, settings, step, rank=0, world_size=1):
	first, rows = rank_rows(settings, rank, world_size)
	length = settings.train_seq_len
	tokens = stream.read(step * settings.train_batch_tokens + first * length, rows * length + 1)
	return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]

def micro_batch_rows(settings, rows):
	most = max(1, settings.micro_batch_tokens // settings.train_seq_len)
	return max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)


# ===== common/params.py
import math
import zlib

@dataclasses.dataclass(frozen=True)
class Param:
	shape: tuple
	init: str = "ones"
	group: str = "scalar"
	std: float = 0.0

def param_table(s):
	dim, kv_dim = s.model_dim, s.model_dim // s.num_heads * s.num_kv_heads
	std = s.tied_embed_init_std if s.tie_embeddings else 1.0
	block = {
		"resid_mix": Param((2, dim), "mix"),
		"attn.c_q.weight": Param((dim, dim), "uniform", "matrix"),
		"attn.c_k.weight": Param((kv_dim, dim), "uniform", "matrix"),
		"attn.c_v.weight": Param((kv_dim, dim), "uniform", "matrix"),
		"attn.q_gain": Param((s.num_heads,), "gain"),
		"attn.proj.weight": Param((dim, dim), "zeros", "matrix"),
		"attn_scale": Param((dim,)),
		"mlp.fc.weight": Param((s.mlp_mult * dim, dim), "uniform", "matrix"),
		"mlp.proj.weight": Param((dim, s.mlp_mult * dim), "zeros", "matrix"),
		"mlp_scale": Param((dim,)),
	}
	table = {"tok_emb.weight": Param((s.vocab_size, dim), "normal", "embed", std)}
	table |= {f"blocks.{i}.{name}": p for i in range(s.num_layers) for name, p in block.items()}
	if num_skips(s):
		table["skip_weights"] = Param((num_skips(s), dim))
	if not s.tie_embeddings:
		table["lm_head.weight"] = Param((s.vocab_size, dim), "zeros", "head")
	return table

def num_skips(s):
	return s.num_layers // 2

def initial_weights(s):
	weights = {}
	for name, p in param_table(s).items():
		random = np.random.Generator(np.random.Philox(key=[s.seed, zlib.crc32(name.encode())]))
		if p.init == "uniform":
			value = (2.0 * random.random(p.shape) - 1.0) / np.sqrt(p.shape[1])
		elif p.init == "normal":
			value = p.std * random.standard_normal(p.shape)
		else:
			value = np.full(p.shape, {"zeros": 0, "ones": 1, "gain": s.qk_gain_init, "mix": [[1], [0]]}[p.init])
		weights[name] = value.astype(np.float32)
	return weights

def rope_tables(s, length):
	half = s.model_dim // s.num_heads // 2
	angles = np.outer(np.arange(length), s.rope_base ** (-np.arange(half) / half))
	return np.cos(angles), np.sin(angles)

def check_weights(s, weights):
	check_tensors({name: p.shape for name, p in param_table(s).items()}, {name: w.shape for name, w in weights.items()})

def check_tensors(expected, found):
	wrong = [f"tensor {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none of that name')}"
			 for name in expected | found if found.get(name) != expected.get(name)]
	if wrong:
		raise ValueError("; ".join(wrong))

def count_params(s):
	return sum(math.prod(p.shape) for p in param_table(s).values())

def flops_per_token(s):
	matrices = sum(math.prod(p.shape) for p in param_table(s).values() if p.group == "matrix")
	return 6 * (matrices + s.model_dim * (s.vocab_size + s.num_layers * s.train_seq_len))


# ===== common/quantize.py
def quantize_rows(weight):
	scale = (np.abs(weight).max(axis=1) / 127).astype(np.float16)
	step = scale.astype(np.float32)[:, None]
	q = np.divide(weight, step, out=np.zeros_like(weight), where=step > 0)
	return np.clip(np.rint(q), -127, 127).astype(np.int8), scale

def dequantize_rows(q, scale):
	return q * scale.astype(np.float32)[:, None]

def quantize_weights(settings, weights):
	stored = {}
	for name, p in param_table(settings).items():
		weight = np.ascontiguousarray(weights[name], np.float32)
		if not (np.abs(weight) < 8e6).all():
			raise ValueError(f"{name} holds a value that is not finite, or too large for a float16 scale")
		stored[name] = weight
		if p.group != "scalar":
			stored[name], stored[name + ".scale"] = quantize_rows(weight)
	return stored

def dequantize_weights(settings, stored):
	expected, weights = {}, {}
	for name, p in param_table(settings).items():
		expected[name] = p.shape, "float32" if p.group == "scalar" else "int8"
		if p.group != "scalar":
			expected[name + ".scale"] = p.shape[:1], "float16"
	check_tensors(expected, {name: (tensor.shape, str(tensor.dtype)) for name, tensor in stored.items()})
	for name, p in param_table(settings).items():
		weights[name] = stored[name] if p.group == "scalar" else dequantize_rows(stored[name], stored[name + ".scale"])
		if not np.isfinite(weights[name]).all():
			raise ValueError(f"tensor {name} holds a value that is not finite")
	return weights


# ===== common/zstream.py
from functools import cache

_CHUNK_BYTES = 512
_MOVE_BYTES = 1 << 14
_PIECE_BYTES = 1 << 18
_STORED_BYTES = 65_535
_HEADER_BITS = 600
_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)

def zlib_encode(data):
	n = len(data)
	symbols = np.frombuffer(data, np.uint8)
	cuts = np.append(np.arange(0, max(n, 1), _CHUNK_BYTES), n)
	counts = np.zeros((len(cuts) - 1, 256), np.int32)
	for i, start in enumerate(cuts[:-1]):
		counts[i] = np.bincount(symbols[start:start + _CHUNK_BYTES], minlength=256)
	whole = _block_code(counts.sum(0))
	cuts, codes = _move_cuts(symbols, *_merge_chunks(cuts, counts))
	if whole[0] <= sum(code[0] for code in codes):
		cuts, codes = [0, n], [whole]

	bits = bytearray()
	for (_, head, lengths), start, stop in zip(codes, cuts, cuts[1:]):
		if head:
			words = [code.encode() for code in _canonical_codes(lengths)]
			bits += bytes([stop == n, 0, 1]) + head.encode()
			for i in range(start, stop, _PIECE_BYTES):
				bits += b"".join(map(words.__getitem__, data[i:min(stop, i + _PIECE_BYTES)]))
			bits += words[256]
			continue
		for i in range(start, max(stop, 1), _STORED_BYTES):
			part = data[i:min(stop, i + _STORED_BYTES)]
			bits += bytes([i + len(part) == n, 0, 0])
			bits += bytes(-len(bits) % 8)
			part = (len(part) | (len(part) ^ 0xFFFF) << 16).to_bytes(4, "little") + part
			bits.extend(np.unpackbits(np.frombuffer(part, np.uint8), bitorder="little"))
	flat = np.frombuffer(bits, np.uint8)
	flat &= 1
	return b"\x78\xda" + np.packbits(flat, bitorder="little").tobytes() + zlib.adler32(data).to_bytes(4, "big")

def _canonical_codes(lengths):
	codes = [""] * len(lengths)
	code = size = 0
	for length, symbol in sorted((int(length), s) for s, length in enumerate(lengths) if length):
		code <<= length - size
		size = length
		codes[symbol] = f"{code:0{size}b}"
		code += 1
	return codes

def _huffman_lengths(counts, limit):
	used = np.flatnonzero(counts)
	used = used[np.argsort(counts[used], kind="stable")]
	coins = leaves = counts[used].astype(np.int64) * 2
	levels = [coins & 1]
	for _ in range(limit - 1):
		pairs = coins[:len(coins) // 2 * 2].reshape(-1, 2) >> 1
		coins = np.sort(np.append(leaves, pairs.sum(1) * 2 + 1))
		levels.append(coins & 1)
	lengths = np.zeros(len(counts), np.int64)
	taken = 2 * len(used) - 2
	for level in reversed(levels):
		packages = int(level[:taken].sum())
		lengths[used[:taken - packages]] += 1
		taken = 2 * packages
	return lengths

def _dynamic_head(lengths):
	text = "".join(chr(65 + length) for length in [*lengths, 0])
	tokens = []
	for run in re.finditer(r"A{11,138}|A{3,10}|(?<=(.))\1{3,6}(?!\1{1,2}(?!\1))|.", text):
		size = len(run[0])
		symbol, least, extra = (16, 3, 2) if run[1] else (17, 3, 3) if size < 11 else (18, 11, 7)
		tokens.append((symbol, _field(size - least, extra)) if size > 1 else (ord(run[0]) - 65, ""))
	sizes = _huffman_lengths(np.bincount([symbol for symbol, _ in tokens], minlength=19), 7)
	codes = _canonical_codes(sizes)
	sent = max(i for i, symbol in enumerate(_LENGTH_ORDER, 1) if sizes[symbol] or i == 4)
	head = "0" * 10 + _field(sent - 4, 4) + "".join(_field(sizes[symbol], 3) for symbol in _LENGTH_ORDER[:sent])
	return head + "".join(codes[symbol] + extra for symbol, extra in tokens)

def _field(value, size):
	return f"{value:0{size}b}"[::-1]

def _block_code(counts):
	n = int(counts.sum())
	stored = 8 * n + 42 * max(1, -(-n // _STORED_BYTES)), "", np.full(257, 8)
	if not n:
		return stored
	counts = np.append(counts, 1)
	lengths = _huffman_lengths(counts, 15)
	head = _dynamic_head(lengths)
	return min(stored, (3 + len(head) + int(counts @ lengths), head, lengths), key=lambda code: code[0])

@cache
def _log2_table():
	odd = np.arange(3, (1 << 17) - 1, 2, np.int64)
	term = 3_172_519_945_584 // odd
	steps = np.zeros_like(odd)
	for k in range(1, 24, 2):
		steps += term // k
		term //= odd * odd
	return np.append([-1 << 16, 0], np.cumsum(steps) + (1 << 22) >> 24)

def _entropy_bits(counts):
	log = _log2_table()
	bits = []
	for i in range(0, len(counts), 1024):
		cells = counts[i:i + 1024]
		cells = np.append(cells, cells.sum(1, keepdims=True), 1)
		shift = (log[cells >> 16] >> 16) + 1
		cells = cells * (log[cells >> shift] + (shift << 16))
		bits.append(2 * cells[:, -1] - cells.sum(1) >> 16)
	return np.concatenate(bits)

def _merge_chunks(cuts, counts):
	bits = _entropy_bits(counts)
	while len(bits) > 1:
		joint = _entropy_bits(counts[:-1] + counts[1:])
		gain = np.concatenate([[0], bits[:-1] + bits[1:] - joint + _HEADER_BITS, [0]])
		gain[::2] += gain[::2] >> 2
		here = gain[1:-1]
		picked = np.flatnonzero((here > 0) & (here > gain[:-2]) & (here >= gain[2:]))
		if not len(picked):
			break
		counts[picked] += counts[picked + 1]
		bits[picked] = joint[picked]
		cuts, bits, counts = (np.delete(x, picked + 1, 0) for x in (cuts, bits, counts))
	return cuts, counts

def _move_cuts(symbols, cuts, counts):
	cuts, codes = cuts.tolist(), [_block_code(row) for row in counts]
	for i in [*range(1, len(codes))] * 2:
		low, high = max(cuts[i - 1] + 1, cuts[i] - _MOVE_BYTES), min(cuts[i + 1] - 1, cuts[i] + _MOVE_BYTES)
		left, right = (np.where(code[2] > 0, code[2], 20) for code in codes[i - 1:i + 1])
		cut = low + int(np.append(0, np.cumsum((left - right)[symbols[low:high]])).argmin())
		moved = np.bincount(symbols[min(cut, cuts[i]):max(cut, cuts[i])], minlength=256)
		moved *= 1 if cut > cuts[i] else -1
		pair = [_block_code(counts[i - 1] + moved), _block_code(counts[i] - moved)]
		if pair[0][0] + pair[1][0] < codes[i - 1][0] + codes[i][0]:
			counts[i - 1] += moved
			counts[i] -= moved
			cuts[i], codes[i - 1:i + 1] = cut, pair
	return cuts, codes


# ===== common/artifact.py
import json

import safetensors.numpy

BUDGET_BYTES = 16_000_000
MODEL_FORMAT = 1

def pack_payload(settings, stored):
	meta = json.dumps({"format": MODEL_FORMAT, "settings": model_settings(settings)}, sort_keys=True, separators=(",", ":"))
	return safetensors.numpy.save(stored, metadata={"parity_golf": meta})

def encode_model(settings, weights):
	payload = pack_payload(settings, quantize_weights(settings, weights))
	return zlib_encode(payload), payload

def inflate_bounded(data, limit):
	stream = zlib.decompressobj()
	try:
		payload = stream.decompress(data, limit)
	except zlib.error as error:
		raise ValueError(f"is no zlib stream ({error})") from None
	if stream.unconsumed_tail:
		raise ValueError(f"expands to more than {limit} bytes")
	if not stream.eof:
		raise ValueError("is cut short")
	if stream.unused_data:
		raise ValueError(f"has {len(stream.unused_data)} bytes after its end")
	return payload

def read_model_settings(payload):
	try:
		size = min(int.from_bytes(payload[:8], "little"), 1 << 20)
		meta = json.loads(json.loads(payload[8:8 + size])["__metadata__"]["parity_golf"])
		found, given = meta["format"], dict(meta["settings"])
	except (LookupError, TypeError, ValueError, RecursionError):
		raise ValueError("has no readable parity_golf header") from None
	if found != MODEL_FORMAT:
		raise ValueError(f"is of format {found}, this program reads {MODEL_FORMAT}")
	fields = {f.name: f for f in dataclasses.fields(ModelSettings)}
	if given.keys() != fields.keys():
		raise ValueError(f"has settings {sorted(given.keys() ^ fields)} that are missing or unknown")
	settings = Settings(**{name: parse_setting(fields[name], repr(value)) for name, value in given.items()})
	wrong = setting_conflicts(dataclasses.replace(settings, train_batch_tokens=settings.train_seq_len,
												  micro_batch_tokens=settings.train_seq_len))
	if wrong:
		raise ValueError("has settings that cannot be: " + "; ".join(wrong))
	return settings

def decode_model(data, max_payload=1 << 28):
	try:
		payload = inflate_bounded(data, max_payload)
		settings = read_model_settings(payload)
		if (params := count_params(settings)) > len(payload):
			raise ValueError(f"has {len(payload)} bytes inside, too few for the {params} parameters of its settings")
		stored = safetensors.numpy.load(payload)
		weights = dequantize_weights(settings, stored)
		if pack_payload(settings, stored) != payload:
			raise ValueError("is not in canonical form")
	except (ValueError, KeyError, safetensors.SafetensorError) as error:
		raise UserError(f"the model file {error}: it was damaged or not written by this program") from None
	return settings, weights


# ===== common/tokenizer.py
from pathlib import Path
import sentencepiece

SPACE_MARKER = "\u2581"
MODEL_LIMIT = 16 << 20

class Tokenizer:

	def __init__(self, encode, bos_id, token_bytes, byte_counts, leading_space, boundary):
		self.encode = encode
		self.bos_id, self.vocab_size, self.token_bytes = bos_id, len(token_bytes), token_bytes
		self.byte_counts = np.array(byte_counts, np.int32)
		self.leading_space, self.boundary = np.array(leading_space, bool), np.array(boundary, bool)

	def decode(self, ids):
		return b"".join(self.token_bytes[i][int(self.leading_space[i] and self.boundary[before]):]
						for before, i in zip([self.bos_id, *ids], ids))

def count_bytes(t, previous_ids, ids):
	return t.byte_counts[ids] + (t.leading_space[ids] & ~t.boundary[previous_ids])

def load_tokenizer(path):
	if str(path) == "bytes":
		token_bytes = [b""] * 4 + [bytes([b]) for b in range(256)]
		counts = [0] * 4 + [1] * 256
		return Tokenizer(lambda text: [4 + b for b in text.encode()], 1, token_bytes, counts, [False] * 260, [not n for n in counts])
	file = Path(path)
	try:
		if not file.is_file():
			raise UserError(f"{path}: no such file; a tokenizer is a SentencePiece .model file, or the word bytes")
		if file.stat().st_size > MODEL_LIMIT:
			raise UserError(f"{path}: more than {MODEL_LIMIT} bytes, which is no SentencePiece model")
		return _sentencepiece_tokenizer(file.read_bytes())
	except (OSError, RuntimeError, ValueError) as error:
		raise UserError(f"{path}: not a usable SentencePiece model: {error}") from error

def _sentencepiece_tokenizer(data):
	model = sentencepiece.SentencePieceProcessor()
	model.LoadFromSerializedProto(data)
	ids = range(model.vocab_size())
	if not 0 < len(ids) <= 65536 or model.bos_id() < 0:
		raise ValueError(f"{len(ids)} ids, BOS {model.bos_id()}; 1 to 65536 and a BOS are needed")
	if model.piece_to_id(SPACE_MARKER) == model.unk_id():
		raise ValueError("there is no piece for the space, which would then count three bytes")
	boundary = [model.is_control(i) or model.is_unknown(i) or model.is_unused(i) for i in ids]
	pieces = ["" if boundary[i] else model.id_to_piece(i) for i in ids]
	token_bytes = [bytes([int(piece[1:-1], 16)]) if model.is_byte(i) else piece.replace(SPACE_MARKER, " ").encode()
				   for i, piece in enumerate(pieces)]

	if model.encode("a", out_type=str)[0].startswith(SPACE_MARKER):
		leading = [piece.startswith(SPACE_MARKER) for piece in pieces]
		counts = [1 if model.is_byte(i) else len(piece.encode()) - 3 * leading[i] for i, piece in enumerate(pieces)]
		return Tokenizer(model.encode, model.bos_id(), token_bytes, counts, leading, boundary)

	marker = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARKER.encode()]

	def encode(text):
		ids = []
		for part in text.split(SPACE_MARKER):
			ids += marker + model.encode(part)
		return ids[len(marker):]

	tokenizer = Tokenizer(encode, model.bos_id(), token_bytes, [*map(len, token_bytes)], [False] * len(ids), boundary)
	probe = f"  a\t {SPACE_MARKER}\n\0 \ufb01\U0010fffd "
	if tokenizer.decode(encode(probe)) != probe.encode():
		raise ValueError("it changes text (normalization, dropped spaces, no byte fallback): bytes cannot be counted")
	return tokenizer


# ===== common/bpb.py
def bits_per_byte(nats, num_bytes):
	return nats / math.log(2) / num_bytes

def eval_windows(num_tokens, seq_len):
	starts = np.arange(0, num_tokens - 1, seq_len)
	return np.stack([starts, np.minimum(seq_len, num_tokens - 1 - starts)], axis=1)

def eval_batch(stream, windows, rows, seq_len):
	tokens, scored = np.zeros((rows, seq_len + 1), np.int32), np.zeros((rows, seq_len), bool)
	for row, (start, count) in enumerate(windows):
		tokens[row, :count + 1] = stream.read(start, count + 1)
		scored[row, :count] = True
	return tokens, scored

def evaluate(trainer, settings, stream, tokenizer, num_tokens):
	seq_len = settings.train_seq_len
	rows = micro_batch_rows(settings, rank_rows(settings, trainer.rank, trainer.world_size)[1])
	mine = eval_windows(num_tokens, seq_len)[trainer.rank::trainer.world_size]
	total = np.zeros(3)
	for first in range(0, len(mine), rows):
		tokens, scored = eval_batch(stream, mine[first:first + rows], rows, seq_len)
		nats = np.asarray(trainer.token_nats(tokens), np.float64)
		num_bytes = count_bytes(tokenizer, tokens[:, :-1], tokens[:, 1:])
		total += nats[scored].sum(), scored.sum(), num_bytes[scored].sum()
	nats, count, num_bytes = trainer.all_sum(total)
	return nats / count, bits_per_byte(nats, num_bytes), int(count), int(num_bytes)


# ===== common/bundle.py
def bundle(path):
	return Path(path).read_bytes()


# ===== common/shards.py
SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024
SHARD_CHUNK = 1 << 24

def open_shard(path):
	try:
		size = os.stat(path).st_size
		if size < SHARD_HEADER_BYTES:
			raise UserError(f"{path}: {size} bytes, less than a shard's header: empty or truncated")
		with open(path, "rb") as file:
			magic, version, count = np.frombuffer(file.read(12), "<i4").tolist()
		if (magic, version) != (SHARD_MAGIC, SHARD_VERSION) or count < 1:
			raise UserError(f"{path}: magic {magic}, version {version}, {count} tokens; a shard has {SHARD_MAGIC}, {SHARD_VERSION}, "
							"1 or more")
		whole = SHARD_HEADER_BYTES + 2 * count
		if size != whole:
			raise UserError(f"{path}: the header says {count} tokens = {whole} bytes, the file has {size}: "
							f"{'truncated' if size < whole else 'too long'}; make or fetch it again")
		return np.memmap(path, "<u2", "r", SHARD_HEADER_BYTES, (count,))
	except (OSError, ValueError) as error:
		raise UserError(f"{path}: cannot be read as a shard: {error}") from error

def find_shards(data_path, split):
	shards = sorted(Path(data_path).glob(f"*_{split}_*.bin"))
	if not shards:
		raise UserError(f"{data_path} has no *_{split}_*.bin: get data with `python -m common.data pydoc` (embedded corpus) "
						"or `python -m common.data fineweb --variant sp1024` (the challenge)")
	return shards

def check_ids(tokens, vocab_size, path):
	for start in range(0, len(tokens), SHARD_CHUNK):
		wrong = tokens[start:start + SHARD_CHUNK] >= vocab_size
		if wrong.any():
			first = start + int(wrong.argmax())
			raise UserError(f"{path}: token {first} (byte {SHARD_HEADER_BYTES + 2 * first}) is {tokens[first]}, "
							f"no id of a vocabulary of {vocab_size}: made with another tokenizer")


# ===== common/dataset.py
import hashlib
from collections import namedtuple

Data = namedtuple("Data", "train val val_tokens partial tokenizer tokenizer_path tokenizer_sha256 manifest_sha256")

def open_data(settings):
	folder = Path(settings.data_path)
	train, val = ([open_shard(path) for path in find_shards(folder, split)] for split in ("train", "val"))
	file, manifest, named, promised = folder / "manifest.json", b"", "", ""
	if file.is_file():
		manifest = file.read_bytes()
		try:
			named, promised = (str(json.loads(manifest)["tokenizer"][key]) for key in ("file", "sha256"))
		except (ValueError, KeyError, TypeError, RecursionError):
			raise UserError(f"{file} is no data manifest: make the data again") from None
	path = settings.tokenizer_path or (named if named in ("", "bytes") else str(folder / named))
	if not path:
		raise UserError(f"DATA_PATH={folder} has no manifest.json: set TOKENIZER_PATH to the tokenizer of its shards")
	tokenizer = load_tokenizer(path)
	digest = hashlib.sha256(b"bytes" if path == "bytes" else Path(path).read_bytes()).hexdigest()
	if promised not in ("", digest):
		raise UserError(f"tokenizer {path} is not the one of the shards (SHA-256 {digest[:12]}, in {file} {promised[:12]}): "
						"leave TOKENIZER_PATH empty, or make the data again")
	if tokenizer.vocab_size != settings.vocab_size:
		raise UserError(f"VOCAB_SIZE={settings.vocab_size}, but tokenizer {path} has {tokenizer.vocab_size} ids: change VOCAB_SIZE")
	for shard in val:
		check_ids(shard, settings.vocab_size, shard.filename)
	train, val = TokenStream(train), TokenStream(val)
	if val.length <= settings.train_seq_len:
		raise UserError(f"validation in {folder} has {val.length} tokens, too few for one row and its target: "
						f"TRAIN_SEQ_LEN={settings.train_seq_len} must be less")
	count = min(settings.val_tokens_limit or val.length, val.length)
	partial = f" partial:{count}/{val.length}" if count < val.length else ""
	return Data(train, val, count, partial, tokenizer, path, digest, hashlib.sha256(manifest).hexdigest() if manifest else "none")


# ===== common/runlog.py
LOG_LINES = {
	"run": "run:{run_id:s} backend:{backend:s} device:{device:*}",
	"versions": "versions: {versions:*}",
	"command": "command: {command:*}",
	"settings": "settings: {settings:*}",
	"data": "data: train_tokens:{train_tokens:d} val_tokens:{val_tokens:d} manifest_sha256:{manifest:s} path:{path:*}",
	"tokenizer": "tokenizer: vocab_size:{vocab_size:d} sha256:{sha256:s} path:{path:*}",
	"code": "code: bytes:{bytes:d} sha256:{sha256:s}",
	"params": "model_params:{params:d} flops_per_token:{flops:d}",
	"batch": "train_batch_tokens:{tokens:d} train_seq_len:{seq_len:d} world_size:{world_size:d} micro_batch_rows:{micro_rows:d}",
	"warmup": "warmup_steps:{steps:d} startup_time:{seconds:.1f}s",
	"step": "step:{step:d}/{iterations:d} train_loss:{train_loss:.4f} train_time:{ms:.0f}ms step_avg:{avg:.2f}ms tok/s:{rate:.0f}",
	"val": "step:{step:d}/{iterations:d} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} train_time:{ms:.0f}ms "
		   "step_avg:{avg:.2f}ms{partial:*}",
	"stop": "stopping_early: wallclock_cap train_time:{ms:.0f}ms step:{step:d}/{iterations:d}",
	"memory": "peak memory allocated: {mib:d} MiB",
	"throughput": "throughput: {rate:.0f} tok/s {flops:.2f} GFLOP/s {share:.1f}% of the measured matmul peak ({peak:.1f} GFLOP/s)",
	"model": "Serialized model int8+zlib: {bytes:d} bytes (payload:{payload:d} stock_zlib9:{zlib9:d} sha256:{sha256:s})",
	"code_size": "Code size: {bytes:d} bytes",
	"total": "Total submission size int8+zlib: {bytes:d} bytes (cap:{cap:d} left:{left:d})",
	"final": "final_int8_zlib_roundtrip val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} eval_time:{ms:.0f}ms{partial:*}",
	"final_exact": "final_int8_zlib_roundtrip_exact val_loss:{val_loss:.8f} val_bpb:{val_bpb:.8f}{partial:*}",
	"scored": "scored: tokens:{tokens:d} bytes:{bytes:d}{partial:*}",
	"status": "status={status:s} reason={reason:*}",
}
_FIELD = re.compile(r"\{(\w+):([^}]+)\}")

def log_line(kind, **values):
	assert dict(_FIELD.findall(LOG_LINES[kind])).keys() == values.keys(), f"{kind}: {values}"
	return " ".join(LOG_LINES[kind].replace(":*}", "}").format(**values).splitlines())


# ===== common/schedule.py
def run_progress(settings, step, elapsed_seconds):
	share = step / settings.iterations if settings.iterations else 1.0
	if settings.max_wallclock_seconds > 0:
		share = max(share, elapsed_seconds / settings.max_wallclock_seconds)
	return min(share, 1.0)

def lr_scale(settings, progress):
	return min(1.0, (1.0 - progress) / settings.warmdown_fraction) if settings.warmdown_fraction else 1.0

def muon_momentum(settings, step):
	steps = settings.muon_momentum_warmup_steps
	part = min(step / steps, 1.0) if steps else 1.0
	return (1.0 - part) * settings.muon_momentum_warmup_start + part * settings.muon_momentum


# ===== common/run.py
import platform
import resource
import shutil
import signal
from importlib import metadata
from tqdm import tqdm

class OverBudget(UserError):
	status = "over_budget"

class NonFinite(UserError):
	status = "nonfinite"

def main(trainer_class, script):
	speaks = int(os.environ.get("RANK") or os.environ.get("MLX_RANK") or 0) == 0
	kind = trainer_class.settings_class
	if {"--help", "-h"} & set(sys.argv[1:]):
		print(settings_help(kind, f"usage: python {Path(script).name} [--setting value ...]"))
		return 0
	try:
		signal.signal(signal.SIGTERM, signal.default_int_handler)
		settings = load_settings(kind, sys.argv[1:], os.environ, lambda text: speaks and print(f"warning: {text}", file=sys.stderr))
		run(trainer_class, settings, script)
		return 0
	except UserError as error:
		reason = str(error)
	except KeyboardInterrupt:
		reason = "interrupted"
	except OSError as error:
		reason = f"{error}: is the disk full, or the folder not yours?"
	except RuntimeError as error:
		if "memory" not in str(error).lower():
			raise
		reason = f"{str(error).splitlines()[0]}: lower MICRO_BATCH_TOKENS, which never changes the result"
	if speaks:
		print(f"error: {reason}", file=sys.stderr)
	return 2

def run(trainer_class, settings, script):
	started = time.perf_counter()
	code = bundle(script)
	data = open_data(settings)
	trainer = trainer_class(settings, initial_weights(settings))
	folder = RunFolder(settings, trainer, script, code) if trainer.rank == 0 else None
	log = folder.log if folder else lambda kind, **values: None
	try:
		if folder:
			describe_run(trainer, settings, data, code, log)
		warm_up(trainer, settings, data)
		log("warmup", steps=settings.warmup_steps, seconds=time.perf_counter() - started)
		status, summary = train(trainer, settings, data, log)
		summary += finish(trainer, settings, data, len(code), folder, log)
	except BaseException as error:
		if folder:
			stopped = isinstance(error, KeyboardInterrupt)
			folder.end("interrupted" if stopped else getattr(error, "status", "failed"), str(error) or type(error).__name__)
		raise
	if folder:
		folder.end(status, "the wall-clock cap was reached" if status == "capped" else "all steps were made")
		print(f"\n{summary}\n  {folder.path}/ holds the log, the code, the settings and the model")
	trainer.close()

class RunFolder:

	def __init__(self, settings, trainer, script, code):
		need = 8 * count_params(settings) + (64 << 20)
		free = shutil.disk_usage(".").free
		if free < need:
			raise UserError(f"{os.getcwd()} has {free >> 20} MiB free, the run may need {need >> 20} MiB: free some space")
		self.path = Path("runs", settings.run_id or time.strftime("%Y%m%d-%H%M%S"))
		try:
			self.path.mkdir(parents=True)
		except FileExistsError:
			raise UserError(f"{self.path} is there already: choose another RUN_ID, or remove it") from None
		self.file = open(self.path / "train.log", "w", encoding="utf-8", buffering=1)
		self.last = {}
		self.write(Path(script).name, code)
		self.write("settings.json", {"backend": trainer.backend} | dataclasses.asdict(settings))
		self.write("status.json", {"status": "running", "reason": ""})

	def log(self, kind, **values):
		self.last |= {"step": values["step"]} if "step" in values else {}
		line = log_line(kind, **values)
		print(line, file=self.file)
		tqdm.write(line)

	def write(self, name, data):
		path, temporary = self.path / name, self.path / f".{name}.tmp"
		with open(temporary, "wb") as file:
			file.write(data if isinstance(data, bytes) else (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())
			file.flush()
			os.fsync(file.fileno())
		os.replace(temporary, path)
		return path

	def end(self, status, reason):
		print(log_line("status", status=status, reason=reason), file=self.file)
		self.file.close()
		self.write("status.json", {"status": status, "reason": reason} | self.last)

def describe_run(trainer, settings, data, code, log):
	packages = [f"{name} {metadata.version(name)}" for name in ("numpy", "sentencepiece", "safetensors")]
	log("run", run_id=settings.run_id or "-", backend=trainer.backend, device=trainer.describe())
	log("versions", versions=", ".join([f"python {platform.python_version()}", *packages, platform.platform()]))
	log("command", command=" ".join(sys.argv))
	log("settings", settings=json.dumps(changed_settings(settings), sort_keys=True))
	log("data", train_tokens=data.train.length, val_tokens=data.val.length, manifest=data.manifest_sha256, path=settings.data_path)
	log("tokenizer", vocab_size=data.tokenizer.vocab_size, sha256=data.tokenizer_sha256, path=data.tokenizer_path)
	log("code", bytes=len(code), sha256=hashlib.sha256(code).hexdigest())
	log("params", params=count_params(settings), flops=flops_per_token(settings))
	rows = rank_rows(settings, 0, trainer.world_size)[1]
	log("batch", tokens=settings.train_batch_tokens, seq_len=settings.train_seq_len, world_size=trainer.world_size,
		micro_rows=micro_batch_rows(settings, rows))

def batch_of(trainer, settings, data, step):
	tokens = step_rows(data.train, settings, step, trainer.rank, trainer.world_size)
	if tokens.max() >= settings.vocab_size:
		for shard in data.train.shards:
			check_ids(shard, settings.vocab_size, shard.filename)
	return tokens

def warm_up(trainer, settings, data):
	if settings.warmup_steps:
		weights, state = trainer.weights(), trainer.optimizer_state()
		tokens = batch_of(trainer, settings, data, 0)
		for _ in range(settings.warmup_steps):
			trainer.train_step(tokens, 1.0, settings.muon_momentum)
		trainer.load_weights(weights)
		trainer.load_optimizer_state(state)
	trainer.wait()

def train(trainer, settings, data, log):
	step, elapsed = 0, 0.0
	cap = settings.max_wallclock_seconds or math.inf
	bar = tqdm(total=1.0, disable=trainer.rank > 0 or not sys.stderr.isatty(), leave=False,
			   bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
	shown, clock = -math.inf, time.perf_counter()
	while True:
		next_end = elapsed + (2 + trainer.steps_ahead) * elapsed / max(step, 1)
		last = step == settings.iterations or next_end > cap
		if last or (settings.val_loss_every and step % settings.val_loss_every == 0):
			trainer.wait()
			elapsed = common_clock(trainer, elapsed + time.perf_counter() - clock)
			val_loss, val_bpb, _, _ = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens)
			log("val", step=step, iterations=settings.iterations, val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * elapsed,
				avg=1e3 * elapsed / max(step, 1), partial=data.partial)
			clock = time.perf_counter()
		if last:
			break
		scale = lr_scale(settings, run_progress(settings, step, elapsed))
		loss = trainer.train_step(batch_of(trainer, settings, data, step), scale, muon_momentum(settings, step))
		step += 1
		now = time.perf_counter()
		elapsed, clock = common_clock(trainer, elapsed + now - clock), now
		logged = step <= 10 or step % settings.train_log_every == 0
		if logged or (not bar.disable and elapsed - shown > 0.5):
			shown = elapsed
			value, rate = float(loss), step * settings.train_batch_tokens / elapsed
			if not math.isfinite(value):
				raise NonFinite(f"the training loss is {value} at step {step}: lower MATRIX_LR, TIED_EMBED_LR and SCALAR_LR, or set "
								"GRAD_CLIP_NORM=1")
			bar.n = run_progress(settings, step, elapsed)
			bar.set_postfix_str(f" step {step} loss {value:.3f} {rate:,.0f} tok/s")
			if logged:
				log("step", step=step, iterations=settings.iterations, train_loss=value, ms=1e3 * elapsed, avg=1e3 * elapsed / step,
					rate=rate)
	bar.close()
	status = "finished" if step == settings.iterations else "capped"
	if status == "capped":
		log("stop", ms=1e3 * elapsed, step=step, iterations=settings.iterations)
	log("memory", mib=int(trainer.all_sum(np.array([float(trainer.peak_memory())]))[0] / trainer.world_size) >> 20)
	rate = step * settings.train_batch_tokens / elapsed if step else 0.0
	flops, peak = rate * flops_per_token(settings), trainer.matmul_flops() * trainer.world_size
	log("throughput", rate=rate, flops=flops / 1e9, share=100 * flops / peak, peak=peak / 1e9)
	return status, (f"  trained   {step:,} steps, {step * settings.train_batch_tokens:,} tokens in {elapsed:.1f} s, {rate:,.0f} tokens/s\n"
					f"  before    val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}\n")

def common_clock(trainer, seconds):
	return seconds if trainer.world_size == 1 else float(trainer.all_sum(np.array([seconds if trainer.rank == 0 else 0.0]))[0])

def finish(trainer, settings, data, code_bytes, folder, log):
	weights = {name: np.asarray(w, np.float32) for name, w in trainer.weights().items()}
	if not all((np.abs(w) < 8e6).all() for w in weights.values()):
		raise NonFinite("a weight is not finite or 8e6 and more: lower MATRIX_LR, TIED_EMBED_LR and SCALAR_LR")
	if folder:
		model, payload = encode_model(settings, weights)
		path = folder.write("model.int8.zlib", model)
		log("model", bytes=len(model), payload=len(payload), zlib9=len(zlib.compress(payload, 9)), sha256=hashlib.sha256(model).hexdigest())
		total = code_bytes + len(model)
		log("code_size", bytes=code_bytes)
		log("total", bytes=total, cap=BUDGET_BYTES, left=BUDGET_BYTES - 1 - total)
		_, weights = decode_model(path.read_bytes())
	trainer.load_weights({name: trainer.all_sum(weights[name] if folder else np.zeros_like(weights[name])) for name in sorted(weights)})
	clock = time.perf_counter()
	val_loss, val_bpb, tokens, num_bytes = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens)
	log("scored", tokens=tokens, bytes=num_bytes, partial=data.partial)
	log("final", val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * (time.perf_counter() - clock), partial=data.partial)
	log("final_exact", val_loss=val_loss, val_bpb=val_bpb, partial=data.partial)
	if not folder:
		return ""
	if total >= BUDGET_BYTES:
		raise OverBudget(f"code {code_bytes:,} + model {len(model):,} = {total:,} bytes, {total - BUDGET_BYTES + 1:,} too many: it must be "
						 f"less than {BUDGET_BYTES:,}. The model is kept in {path}; use fewer layers or a smaller width")
	return (f"  final     val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}  read back from the written file{data.partial}\n"
			f"  size      {total:,} bytes = model {len(model):,} + code {code_bytes:,}; {BUDGET_BYTES - 1 - total:,} left under the cap")

def host_peak_memory():
	return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ===== train_gpt.py

# ------------------------------------------------------------------------------
# Model. Shapes: B rows, T positions, V vocabulary, C width, H query heads, K kv heads, G = H / K, D = C / H
# ------------------------------------------------------------------------------


class Attention(nn.Module):
	"""Causal self-attention with grouped queries, RMS-normed queries and keys, rotary positions and a gain per head."""

	def __init__(self, s):
		super().__init__()
		self.s, self.head_dim = s, s.model_dim // s.num_heads
		self.c_q = nn.Linear(s.model_dim, s.model_dim, bias=False)
		self.c_k = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
		self.c_v = nn.Linear(s.model_dim, s.num_kv_heads * self.head_dim, bias=False)
		self.q_gain = nn.Parameter(torch.empty(s.num_heads))
		self.proj = nn.Linear(s.model_dim, s.model_dim, bias=False)

	def forward(self, x, cos, sin):
		B, T, C = x.shape
		q = linear(x, self.c_q).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
		k = linear(x, self.c_k).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
		v = linear(x, self.c_v).view(B, T, -1, self.head_dim).transpose(1, 2)
		q = rotate(rms_norm(q, self.s), cos, sin) * self.q_gain.to(x.dtype)[:, None, None]
		k = rotate(rms_norm(k, self.s), cos, sin)
		return linear(attend(q, k, v).transpose(1, 2).reshape(B, T, C), self.proj)


class MLP(nn.Module):
	"""relu^2 (Primer, arXiv:2109.08668)."""

	def __init__(self, s):
		super().__init__()
		self.fc = nn.Linear(s.model_dim, s.mlp_mult * s.model_dim, bias=False)
		self.proj = nn.Linear(s.mlp_mult * s.model_dim, s.model_dim, bias=False)

	def forward(self, x):
		return linear(torch.relu(linear(x, self.fc)).square(), self.proj)


class Block(nn.Module):
	def __init__(self, s):
		super().__init__()
		self.s = s
		self.resid_mix = nn.Parameter(torch.empty(2, s.model_dim))
		self.attn, self.mlp = Attention(s), MLP(s)
		self.attn_scale = nn.Parameter(torch.empty(s.model_dim))
		self.mlp_scale = nn.Parameter(torch.empty(s.model_dim))

	def forward(self, x, x0, cos, sin):
		mix = self.resid_mix.to(x.dtype)
		x = mix[0] * x + mix[1] * x0
		x = x + self.attn_scale.to(x.dtype) * self.attn(rms_norm(x, self.s), cos, sin)
		return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x, self.s))


class GPT(nn.Module):
	"""Token embedding, an encoder half whose outputs are added, last first, to the decoder half's inputs, and a head."""

	def __init__(self, s, dtype, device):
		super().__init__()
		self.s, self.dtype = s, dtype
		self.tok_emb = nn.Embedding(s.vocab_size, s.model_dim)
		self.blocks = nn.ModuleList(Block(s) for _ in range(s.num_layers))
		self.num_skips = s.num_layers // 2
		if self.num_skips:
			self.skip_weights = nn.Parameter(torch.empty(self.num_skips, s.model_dim))
		if not s.tie_embeddings:
			self.lm_head = nn.Linear(s.model_dim, s.vocab_size, bias=False)
		self.cos, self.sin = (torch.tensor(t, dtype=wide(dtype), device=device) for t in rope_tables(s, s.train_seq_len))

	def logits(self, tokens_BT):
		"""(B, T, V) in float32, float64 in reference mode."""
		cos, sin = self.cos[:tokens_BT.shape[1]], self.sin[:tokens_BT.shape[1]]
		x = x0 = rms_norm(self.tok_emb(tokens_BT).to(self.dtype), self.s)
		skips = []
		for i, block in enumerate(self.blocks):
			if i >= self.num_skips and skips:
				x = x + self.skip_weights[i - self.num_skips].to(x.dtype) * skips.pop()
			x = block(x, x0, cos, sin)
			if i < self.num_skips:
				skips.append(x)
		head = self.tok_emb if self.s.tie_embeddings else self.lm_head
		logits = linear(rms_norm(x, self.s), head).to(wide(self.dtype))
		return self.s.logit_softcap * torch.tanh(logits / self.s.logit_softcap)

	def forward(self, tokens):
		"""(B, T) nats of each target: tokens (B, T + 1) hold the inputs and, moved by one, the targets."""
		tokens = tokens.long()
		logits = self.logits(tokens[:, :-1])
		return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


def linear(x, layer):
	"""The weights stay in float32; the product is in the compute dtype."""
	return F.linear(x, layer.weight.to(x.dtype))


def rms_norm(x, s):
	return F.rms_norm(x, x.shape[-1:], eps=s.rms_norm_eps)  # accumulates in float32


def rotate(x, cos, sin):
	"""Rotary embedding of x (B, heads, T, D): the two halves of a head are the pairs; turns by -angle."""
	a, b = x.to(cos.dtype).chunk(2, dim=-1)
	return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1).to(x.dtype)


def attend(q, k, v):
	"""Causal attention (B, H, T, D); query head h uses kv head h // G."""
	B, H, T, D = q.shape
	if q.device.type == "cpu" and (T <= 512 or q.dtype == torch.float64):
		# plain products beat the CPU's flash kernel at short lengths; the queries of one kv head share a product
		q = q.view(B, -1, H // k.shape[1] * T, D)  # (B, K, G * T, D)
		scores = (q @ k.transpose(-2, -1)).view(B, -1, T, T).to(wide(q.dtype)) * D**-0.5
		past = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
		weights = scores.masked_fill(~past, float("-inf")).softmax(dim=-1).to(q.dtype)
		return (weights.view(B, -1, H // k.shape[1] * T, T) @ v).view(B, H, T, D)
	if q.device.type == "mps":  # which knows no grouped queries
		k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
	return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] < H)


def wide(dtype):
	"""float64 in reference mode, else float32: softcap, softmax and the rotary tables."""
	return torch.promote_types(dtype, torch.float32)


# ------------------------------------------------------------------------------
# Optimizers: Muon for the matrices, Adam for the rest
# ------------------------------------------------------------------------------


def newton_schulz(g, steps):
	"""Roughly the nearest orthogonal matrix of each of (n, rows, columns): a quintic iteration that pulls every singular
    value towards 1 (Keller Jordan, "Muon", 2024)."""
	a, b, c = 3.4445, -4.7750, 2.0315
	tall = g.shape[1] > g.shape[2]
	x = g.transpose(1, 2) if tall else g
	for _ in range(steps):
		A = x @ x.transpose(1, 2)
		B = torch.baddbmm(A, A, A, beta=b, alpha=c)
		x = torch.baddbmm(x, B, x, beta=a)
	return x.transpose(1, 2) if tall else x


class Muon:
	"""Nesterov momentum, then Newton-Schulz, all matrices of one shape in one batched product. Every rank computes every
    update: a few percent of a step, and the weights of all ranks stay equal to the bit."""

	def __init__(self, params, dtype, steps):
		self.dtype, self.steps = dtype, steps
		self.groups = {}
		for name, p in params.items():
			self.groups.setdefault(p.shape, {})[name] = p
		self.momentum = {shape: torch.zeros(len(group), *shape, dtype=p.dtype, device=p.device) for shape, group in self.groups.items()}

	def step(self, lr, momentum):
		for (rows, columns), group in self.groups.items():
			g = torch.stack([p.grad for p in group.values()])
			buffer = self.momentum[rows, columns].mul_(momentum).add_(g)
			g.add_(buffer, alpha=momentum)
			g /= g.norm(dim=(1, 2), keepdim=True) + 1e-7
			update = newton_schulz(g.to(self.dtype), self.steps).to(buffer.dtype)
			torch._foreach_add_(list(group.values()), list(update.unbind()), alpha=-lr * max(1, rows / columns) ** 0.5)


# ------------------------------------------------------------------------------
# Trainer: what common/run.py drives
# ------------------------------------------------------------------------------


class TorchTrainer:
	"""The model, its optimizers and one process of a distributed run. See common/run.py, Trainer."""

	backend = "torch"
	settings_class = Settings

	def __init__(self, settings, weights):
		check_weights(settings, weights)
		self.s = s = settings
		self.device = pick_device(s)
		self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
		if self.world_size > 1 and not dist.is_initialized():
			dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
									timeout=datetime.timedelta(minutes=10))
		rank_rows(s, self.rank, self.world_size)
		self.dtype = pick_dtype(s, self.device)
		self.model = GPT(s, self.dtype, self.device).to(self.device, torch.float64 if self.dtype == torch.float64 else torch.float32)
		self.params = dict(self.model.named_parameters())
		self.groups = {name: p.group for name, p in param_table(s).items()}
		self.load_weights(weights)
		compiled = s.compile and self.device.type != "mps"  # Inductor on MPS is a prototype
		self.forward = torch.compile(self.model, fullgraph=True, dynamic=False) if compiled else self.model
		if self.world_size > 1:
			self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True)
		self.muon = Muon({n: p for n, p in self.params.items() if self.groups[n] == "matrix"}, self.dtype, s.muon_backend_steps)
		lrs = {"embed": s.tied_embed_lr if s.tie_embeddings else s.embed_lr, "head": s.head_lr, "scalar": s.scalar_lr}
		self.adam = torch.optim.Adam(
			[{"params": [p for n, p in self.params.items() if self.groups[n] == group], "lr": lr, "base_lr": lr}
			 for group, lr in lrs.items() if group in self.groups.values()],
			betas=(s.beta1, s.beta2), eps=s.adam_eps, fused=self.device.type != "mps")
		for name in self.adam_names():
			p = self.params[name]
			self.adam.state[p] = {"step": torch.zeros((), device=self.device if self.device.type == "cuda" else "cpu"),
								  "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
		self.running = None  # event at the end of the step before, on CUDA
		self.steps_ahead = int(self.device.type == "cuda")

	# one optimizer step ------------------------------------------------------------

	def train_step(self, tokens, lr_scale, momentum):
		"""One update from this rank's rows (rows, train_seq_len + 1); the mean nats of the global batch (0-dim tensor)."""
		loss = self.backward(tokens)
		if self.s.grad_clip_norm > 0:
			nn.utils.clip_grad_norm_(self.params.values(), self.s.grad_clip_norm)
		with torch.no_grad():
			self.muon.step(self.s.matrix_lr * lr_scale, momentum)
		for group in self.adam.param_groups:
			group["lr"] = group["base_lr"] * lr_scale
		self.adam.step()
		if self.steps_ahead:  # the CPU waits for the step before: the clock stays honest
			if self.running is not None:
				self.running.synchronize()
			self.running = torch.cuda.Event()
			self.running.record()
		return loss

	def backward(self, tokens):
		"""Gradients of the global mean loss into .grad, and that loss."""
		tokens = self.to_device(tokens)
		micro = tokens.split(micro_batch_rows(self.s, len(tokens)))
		scale = 1.0 / (tokens[:, 1:].numel() * self.world_size)
		total = torch.zeros((), dtype=wide(self.dtype), device=self.device)
		for p in self.params.values():
			p.grad = None
		for i, rows in enumerate(micro):
			last = i == len(micro) - 1
			with contextlib.nullcontext() if last or self.world_size == 1 else self.forward.no_sync():
				loss = self.forward(rows).sum() * scale
				(loss * self.world_size).backward()  # DDP averages over the ranks
			total += loss.detach()
		if self.world_size > 1:
			dist.all_reduce(total)
		return total

	def to_device(self, tokens):
		tokens = torch.from_numpy(np.array(tokens))
		if self.device.type == "cuda":
			return tokens.pin_memory().to(self.device, non_blocking=True)
		return tokens.to(self.device)

	# what else a run asks for ------------------------------------------------------

	def token_nats(self, tokens):
		"""float (B, T) nats of each target of tokens (B, T + 1)."""
		model = self.forward.module if self.world_size > 1 else self.forward
		# a CPU takes 10 s to compile a second graph without gradients: there the one for training serves
		with torch.set_grad_enabled(self.s.compile and self.device.type == "cpu"):
			return model(self.to_device(tokens)).detach().cpu().numpy()

	@torch.no_grad()
	def logits(self, tokens):
		"""(B, T, V) of tokens (B, T)."""
		return self.model.logits(self.to_device(tokens).long()).cpu().numpy()

	def gradients(self, tokens):
		"""(loss, dict of gradients) of the global mean loss."""
		loss = float(self.backward(tokens))
		return loss, {name: p.grad.cpu().numpy().copy() for name, p in self.params.items()}

	def weights(self):
		return {name: p.detach().cpu().numpy().copy() for name, p in self.params.items()}

	@torch.no_grad()
	def load_weights(self, weights):
		check_weights(self.s, weights)
		for name, p in self.params.items():
			p.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))

	def adam_names(self):
		return [name for name in self.params if self.groups[name] != "matrix"]

	def optimizer_state(self):
		"""dict of arrays: NAME.momentum, NAME.exp_avg, NAME.exp_avg_sq, and adam_step, the number of updates made."""
		state = {f"{name}.momentum": row for shape, group in self.muon.groups.items()
				 for name, row in zip(group, self.muon.momentum[shape].cpu().numpy().copy())}
		for name in self.adam_names():
			moments = self.adam.state[self.params[name]]
			state |= {f"{name}.{key}": moments[key].cpu().numpy().copy() for key in ("exp_avg", "exp_avg_sq")}
			state["adam_step"] = moments["step"].cpu().numpy().copy()
		return state

	@torch.no_grad()
	def load_optimizer_state(self, state):
		for shape, group in self.muon.groups.items():
			self.muon.momentum[shape].copy_(torch.from_numpy(np.stack([state[f"{name}.momentum"] for name in group])))
		for name in self.adam_names():
			moments = self.adam.state[self.params[name]]
			for key in ("exp_avg", "exp_avg_sq"):
				moments[key].copy_(torch.from_numpy(np.ascontiguousarray(state[f"{name}.{key}"])))
			moments["step"].fill_(float(state["adam_step"]))

	def all_sum(self, array):
		"""Sum of a numpy array over the ranks."""
		if self.world_size == 1:
			return array
		total = torch.from_numpy(np.array(array))
		dist.all_reduce(total)
		return total.numpy()

	def wait(self):
		"""Until the device has done all that was asked of it."""
		if self.device.type != "cpu":
			getattr(torch, self.device.type).synchronize()

	def peak_memory(self):
		"""Bytes: of the CUDA allocator on this rank, else of the process."""
		return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else host_peak_memory()

	def matmul_flops(self):
		"""Floating-point operations per second of a square product in the compute dtype: the best of five."""
		n = 8192 if self.device.type == "cuda" else 1024
		x = torch.ones(n, n, dtype=self.dtype, device=self.device)
		best = float("inf")
		for _ in range(6):
			self.wait()
			start = time.perf_counter()
			x @ x
			self.wait()
			best = min(best, time.perf_counter() - start)
		return 2 * n**3 / best

	def describe(self):
		name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
		return f"{self.world_size} x {name}, {str(self.dtype).removeprefix('torch.')}, torch {torch.__version__}"

	def close(self):
		if dist.is_initialized():
			dist.barrier()  # a rank that leaves first can abort in gloo's threads, and torchrun then stops them all
			self.forward = None
			dist.destroy_process_group()


def pick_device(s):
	if s.device != "cpu" and s.compute_dtype != "float64":
		if torch.cuda.is_available():
			device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
			torch.cuda.set_device(device)
			return device
		if torch.backends.mps.is_available():
			return torch.device("mps")
	if s.device == "gpu":
		raise UserError("DEVICE=gpu, but PyTorch sees none here: use DEVICE=cpu, or a build of PyTorch for your GPU")
	return torch.device("cpu")


def pick_dtype(s, device):
	if s.compute_dtype != "auto":
		return getattr(torch, s.compute_dtype)
	native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
	return torch.bfloat16 if native else torch.float32


if __name__ == "__main__":
	sys.exit(main(TorchTrainer, __file__))
