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
	from torch.utils.checkpoint import checkpoint
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

	def __init__(self, message, status="failed"):
		super().__init__(message)
		self.status = status

@contextlib.contextmanager
def failing_as(status):
	try:
		yield
	except UserError as error:
		error.status = status
		raise

def setting(default, meaning, low=None, high=None, choices=None):
	return dataclasses.field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})

@dataclasses.dataclass(frozen=True)
class ModelSettings:
	vocab_size: int = setting(0, "token ids; 0: as many as the tokenizer has", 0, 65536)
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
	loop_layers: str = setting("", "blocks 3-5, say, that are applied LOOP_COUNT times with shared weights, counted from 0; empty: none")
	loop_count: int = setting(2, "times that LOOP_LAYERS are applied", 2, 16)

LATER = "loop_layers", "loop_count"

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
	eval_seq_len: int = setting(0, "tokens of a window of the final evaluation; 0: TRAIN_SEQ_LEN", 0, 2**20)
	eval_stride: int = setting(0, "tokens that the windows of the final evaluation advance by; 0: EVAL_SEQ_LEN", 0, 2**20)
	ttt_lr: float = setting(0.0, "test-time training: SGD's learning rate in the final evaluation; 0: off", 0, 100)
	ttt_chunk: str = setting("32768", "tokens scored before each step on them; 2048d: and trained weights restored after a document")
	qat_start: float = setting(1.0, "share of the run after which the forward pass rounds weights as the model file does; 1: never", 0, 1)
	ema_decay: float = setting(0.0, "decay per step of the average of the weights that is validated and exported; 0: none", 0, 0.999999)
	quant_levels: str = setting("127", "largest code of a stored weight, 2 to 127; auto: as many as fit the budget; or by group: "
									   "matrix=15,embed=fp16,head=auto")
	loss_chunk: int = setting(0, "positions whose logits are in memory at once: memory only, never the result; 0: all", 0, 2**31)
	resume: str = setting("", "run folder to continue, or auto: the newest that is not finished, if any")
	checkpoint_every: str = setting("60s", "steps (500) or seconds (60s) between checkpoints; 0: only when interrupted and at the end")
	rank_timeout: float = setting(60.0, "seconds, or ten steps, after which a rank that makes no step hangs", 0.1, 1e6)
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

def group_levels(s):
	found = dict.fromkeys(["matrix", "embed"] + ["head"] * (not s.tie_embeddings), 127)
	named = set()
	for part in s.quant_levels.split(","):
		name, equals, value = (word.strip() for word in part.rpartition("="))
		if not (value in ("auto", "fp16") or (re.fullmatch("[0-9]{1,3}", value) and 2 <= int(value) <= 127)):
			raise ValueError(f"QUANT_LEVELS={s.quant_levels}: {value or 'nothing'} is not a whole number from 2 to 127, auto or fp16")
		if equals and name not in found:
			hint = ": the head is the embedding, unless TIE_EMBEDDINGS=0" * (name == "head")
			raise ValueError(f"QUANT_LEVELS={s.quant_levels}: {name or 'nothing'} is not one of {', '.join(found)}{hint}")
		if named & {name, ""} or (named and not equals):
			raise ValueError(f"QUANT_LEVELS={s.quant_levels}: give one value for all, or one for each group, as in matrix=15,embed=fp16")
		named.add(name)
		found |= dict.fromkeys([name] if equals else found, value if value in ("auto", "fp16") else int(value))
	return found

def setting_conflicts(s):
	wrong = [f"{a.upper()}={getattr(s, a)} must be a multiple of {b.upper()}={getattr(s, b)}"
			 for a, b in (("model_dim", "num_heads"), ("num_heads", "num_kv_heads"), ("train_batch_tokens", "train_seq_len"))
			 if getattr(s, a) % getattr(s, b)]
	if s.model_dim // s.num_heads % 2:
		wrong.append(f"MODEL_DIM={s.model_dim} / NUM_HEADS={s.num_heads} must be even: rotary embedding turns pairs")
	if s.loop_layers:
		ends = re.fullmatch(r"(0|[1-9]\d{0,3})-(0|[1-9]\d{0,3})", s.loop_layers)
		if not ends:
			wrong.append(f"LOOP_LAYERS={ascii(s.loop_layers)[1:-1]:.60} is no range of blocks: write the first and the last, as in 3-5 (or 3-3)")
		elif int(ends[1]) > int(ends[2]):
			wrong.append(f"LOOP_LAYERS={s.loop_layers} is reversed: write the first block and then the last, {ends[2]}-{ends[1]}")
		elif int(ends[2]) >= s.num_layers:
			wrong.append(f"LOOP_LAYERS={s.loop_layers} is outside the model: NUM_LAYERS={s.num_layers} has blocks 0-{s.num_layers - 1}")
	elif s.loop_count != ModelSettings.loop_count:
		wrong.append(f"LOOP_COUNT={s.loop_count} applies nothing again without LOOP_LAYERS: name blocks, as in LOOP_LAYERS=3-5")
	if s.micro_batch_tokens < s.train_seq_len:
		wrong.append(f"MICRO_BATCH_TOKENS={s.micro_batch_tokens} is less than one row (TRAIN_SEQ_LEN={s.train_seq_len})")
	if s.val_tokens_limit == 1:
		wrong.append("VAL_TOKENS_LIMIT=1 leaves nothing to score: use 0 (all) or more")
	if s.eval_stride > (window := s.eval_seq_len or s.train_seq_len):
		wrong.append(f"EVAL_STRIDE={s.eval_stride} would leave tokens out between windows of {window} (EVAL_SEQ_LEN, else TRAIN_SEQ_LEN): "
					 f"use 1 to {window}, or a longer EVAL_SEQ_LEN")
	if not re.fullmatch(r"[1-9]\d{0,8}d?", s.ttt_chunk, re.ASCII):
		wrong.append(f"TTT_CHUNK={s.ttt_chunk} is neither tokens (32768) nor tokens within a document (2048d)")
	if not re.fullmatch(r"(?!\.)[\w.-]{0,60}", s.run_id):
		wrong.append(f"RUN_ID={s.run_id} must be a plain folder name: at most 60 letters, digits, _ - .")
	if not re.fullmatch(r"\d{1,9}|\d{1,9}(\.\d{1,9})?s", s.checkpoint_every):
		wrong.append(f"CHECKPOINT_EVERY={s.checkpoint_every} is neither steps (500) nor seconds (60s)")
	if s.compute_dtype == "float64" and s.device == "gpu":
		wrong.append("COMPUTE_DTYPE=float64 runs on the CPU: use DEVICE=cpu or auto")
	try:
		if "auto" in group_levels(s).values() and s.qat_start < 1:
			wrong.append(f"QAT_START={s.qat_start} needs to know what to round to: instead of auto in QUANT_LEVELS={s.quant_levels} give numbers, "
						 "such as those that --preflight or a run without QAT_START finds")
	except ValueError as error:
		wrong.append(str(error))
	return wrong

def load_settings(kind, flags, environment, warn, stored=None):
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
	if stored and text.get("resume"):
		text = {name: value for name, value in stored(text["resume"], text.get("run_id", "")).items() if name in fields} | text
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
	values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(ModelSettings)}
	return {name: value for name, value in values.items() if name not in LATER or value != getattr(ModelSettings, name)}

def settings_table(kind):
	return [(f.name.upper(), str(int(f.default) if f.type is bool else f.default),
			 f.metadata["meaning"] + (f" ({', '.join(choices)})" if (choices := f.metadata["choices"]) else ""))
			for f in dataclasses.fields(kind)]

def settings_help(kind, usage):
	lines = [f"  {'--' + name.lower().replace('_', '-'):<30} {default:<24} {meaning}" for name, default, meaning in settings_table(kind)]
	return "\n".join([usage, "Each setting is a flag, or an environment variable (ITERATIONS=200).", "", *lines])


# ===== common/shards.py
from pathlib import Path

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
		shard = np.memmap(path, "<u2", "r", SHARD_HEADER_BYTES, (count,))
		shard.stamp = _stamp(path)
		return shard
	except (OSError, ValueError) as error:
		raise UserError(f"{path}: cannot be read as a shard: {error}") from error

def check_unchanged(shard, first):
	stamp = getattr(shard, "stamp", None)
	if stamp and _stamp(shard.filename) != stamp:
		raise UserError(f"{shard.filename}: changed while it is used, seen at token {first} (byte {SHARD_HEADER_BYTES + 2 * first}): "
						"let the data be, and start again", "bad_data")

def _stamp(path):
	try:
		status = os.stat(path)
		return status.st_ino, status.st_size, status.st_mtime_ns
	except OSError:
		return None

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
			check_unchanged(self.shards[index], start - self.ends[index] + len(self.shards[index]))
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

def micro_batch_rows(settings, rows, seq_len=0):
	most = max(1, settings.micro_batch_tokens // (seq_len or settings.train_seq_len))
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

def layer_order(s):
	order = list(range(s.num_layers))
	if not s.loop_layers:
		return order
	first, last = map(int, s.loop_layers.split("-"))
	return order[:last + 1] + order[first:last + 1] * (s.loop_count - 1) + order[last + 1:]

def num_skips(s):
	return len(layer_order(s)) // 2

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
	block = sum(math.prod(p.shape) for name, p in param_table(s).items() if p.group == "matrix" and name.startswith("blocks.0."))
	return 6 * (len(layer_order(s)) * (block + s.model_dim * s.train_seq_len) + s.model_dim * s.vocab_size)

def training_bytes(s, rows, itemsize, score_rows=0):
	width, positions, layers = 8 if itemsize == 8 else 4, rows * s.train_seq_len, len(layer_order(s))
	kept = layers * positions * s.model_dim * (12 + 3 * s.mlp_mult) * itemsize
	one_score = layers * (2 * width + itemsize) if score_rows == s.train_seq_len else 12 * width
	logits = min(3 * positions, 8 * (s.loss_chunk or positions)) * s.vocab_size * width
	return 5 * width * count_params(s) + kept + positions * score_rows * s.num_heads * one_score + logits


# ===== common/quantize.py
MOST_LEVELS = 32767

def tensor_levels(settings):
	levels = group_levels(settings)
	return {name: levels[p.group] for name, p in param_table(settings).items() if p.group != "scalar"}

def quantize_rows(weight, levels=127):
	top = round(levels)
	exact = np.abs(weight).max(axis=1) / np.float32(levels)
	scale = exact.astype(np.float16)
	if top > 127:
		scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
	step = scale.astype(np.float32)[:, None]
	q = np.divide(weight, step, out=np.zeros_like(weight), where=step > 0)
	return np.clip(np.rint(q), -top, top).astype(np.int8 if top <= 127 else np.int16), scale

def dequantize_rows(q, scale):
	return q * scale.astype(np.float32)[:, None]

def low_bits(levels):
	return max(0, round(levels).bit_length() - 7)

def store_matrix(name, weight, levels):
	if levels == "fp16":
		return {name: weight.astype(np.float16)}
	q, scale = quantize_rows(weight, levels)
	if not (bits := low_bits(levels)):
		return {name: q, name + ".scale": scale}
	low = np.unpackbits((q & (1 << bits) - 1).astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - bits:]
	return {name: (q >> bits).astype(np.int8), name + ".low": np.packbits(low.reshape(len(q), -1), axis=1), name + ".scale": scale}

def stored_kinds(name, shape, levels):
	if levels == "fp16":
		return {name: (shape, "float16")}
	low = {name + ".low": ((shape[0], -(-shape[1] * low_bits(levels) // 8)), "uint8")} if low_bits(levels) else {}
	return {name: (shape, "int8"), name + ".scale": (shape[:1], "float16")} | low

def load_matrix(name, stored, levels):
	if levels == "fp16":
		return stored[name].astype(np.float32)
	q, top = stored[name], round(levels)
	if bits := low_bits(levels):
		low = np.unpackbits(stored[name + ".low"], axis=1)
		if low[:, q.shape[1] * bits:].any():
			raise ValueError(f"tensor {name}.low does not end in zeros")
		low = np.packbits(low[:, :q.shape[1] * bits].reshape(*q.shape, bits), axis=2)[:, :, 0] >> (8 - bits)
		q = (q.astype(np.int16) << bits) + low
	if q.max() > top or q.min() < -top:
		raise ValueError(f"tensor {name} holds a code beyond its {levels} levels")
	return dequantize_rows(q, stored[name + ".scale"])

def weight_limit(levels):
	if isinstance(levels, str):
		levels = {"fp16": 1, "auto": 2}[levels]
	return 8e6 * min(levels, 127) / 127

def unstorable(settings, weights, levels=None):
	levels = {"scalar": 127} | (levels or group_levels(settings))
	return next((name for name, p in param_table(settings).items()
				 if not (np.abs(weights[name]) < weight_limit(levels[p.group])).all()), None)

def quantize_weights(settings, weights, levels=None):
	levels, stored = levels or group_levels(settings), {}
	if name := unstorable(settings, weights, levels):
		raise ValueError(f"{name} holds a value that is not finite, or too large for a float16 scale")
	for name, p in param_table(settings).items():
		weight = np.ascontiguousarray(weights[name], np.float32)
		stored |= {name: weight} if p.group == "scalar" else store_matrix(name, weight, levels[p.group])
	return stored

def dequantize_weights(settings, stored, levels=None):
	levels, table, expected, weights = levels or group_levels(settings), param_table(settings), {}, {}
	for name, p in table.items():
		expected |= {name: (p.shape, "float32")} if p.group == "scalar" else stored_kinds(name, p.shape, levels[p.group])
	check_tensors(expected, {name: (tensor.shape, str(tensor.dtype)) for name, tensor in stored.items()})
	for name, p in table.items():
		weights[name] = stored[name] if p.group == "scalar" else load_matrix(name, stored, levels[p.group])
		if not np.isfinite(weights[name]).all():
			raise ValueError(f"tensor {name} holds a value that is not finite")
	return weights

def relative_error(settings, weights, stored_weights):
	names = [name for name, p in param_table(settings).items() if p.group != "scalar"]
	lost = sum(float(np.square(weights[name] - stored_weights[name]).sum(dtype=np.float64)) for name in names)
	return (lost / (sum(float(np.square(weights[name]).sum(dtype=np.float64)) for name in names) or 1.0)) ** 0.5


# ===== common/bundle.py
def bundle(path):
	return Path(path).read_bytes()


# ===== common/runlog.py
from functools import cache

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
	"quant": "quant: levels:{levels:s} model_bytes:{bytes:d} weights_error:{error:.6f}",
	"model": "Serialized model int8+zlib: {bytes:d} bytes (payload:{payload:d} stock_zlib9:{zlib9:d} sha256:{sha256:s})",
	"code_size": "Code size: {bytes:d} bytes",
	"total": "Total submission size int8+zlib: {bytes:d} bytes (cap:{cap:d} left:{left:d})",
	"final": "final_int8_zlib_roundtrip val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} eval_time:{ms:.0f}ms{partial:*}",
	"final_exact": "final_int8_zlib_roundtrip_exact val_loss:{val_loss:.8f} val_bpb:{val_bpb:.8f}{partial:*}",
	"evaluation": "evaluation: time:{seconds:.1f}s limit:{limit:.0f}s seq_len:{seq_len:d} stride:{stride:d} ttt:{ttt:*}",
	"scored": "scored: tokens:{tokens:d} bytes:{bytes:d}{partial:*}",
	"resume": "resume: step:{step:d} train_time:{ms:.0f}ms folder:{path:*}",
	"checkpoint": "checkpoint: step:{step:d} bytes:{bytes:d} write_time:{seconds:.2f}s",
	"checkpoint_failed": "checkpoint_failed: step:{step:d} reason:{reason:*}",
	"checkpoint_damaged": "checkpoint_damaged: {reason:*}",
	"preflight": "preflight: disk_free:{free:d}MiB disk_need:{need:d}MiB memory:{memory:d}MiB memory_need:{memory_need:d}MiB",
	"status": "status={status:s} reason={reason:*} hint={hint:*}",
}
_FIELD = re.compile(r"\{(\w+):([^}]+)\}")

def log_line(kind, **values):
	assert dict(_FIELD.findall(LOG_LINES[kind])).keys() == values.keys(), f"{kind}: {values}"
	return " ".join(LOG_LINES[kind].replace(":*}", "}").format(**values).splitlines())


# ===== common/folder.py
import fcntl
import json
import shutil

from tqdm import tqdm

def write_file(path, *parts):
	temporary = path.with_name(f".{path.name}.tmp")
	try:
		with open(temporary, "wb") as file:
			for part in parts:
				file.write(part)
			file.flush()
			os.fsync(file.fileno())
		os.replace(temporary, path)
	except OSError:
		with contextlib.suppress(OSError):
			os.unlink(temporary)
		raise
	folder = os.open(path.parent, os.O_RDONLY)
	try:
		os.fsync(folder)
	finally:
		os.close(folder)
	return path

def write_json(path, values):
	return write_file(path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())

def read_json(path):
	try:
		found = json.loads(path.read_bytes())
	except (OSError, ValueError, RecursionError):
		return {}
	return found if isinstance(found, dict) else {}

def locked(file, how=fcntl.LOCK_EX):
	try:
		fcntl.flock(file, how | fcntl.LOCK_NB)
	except BlockingIOError:
		return False
	return True

def say(text, file=None):
	file = file or sys.stdout
	try:
		tqdm.write(text, file=file)
		file.flush()
	except BrokenPipeError:
		os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
	except OSError:
		pass

def resume_hint(path):
	return f"continue with --resume {path}" if [*path.glob("step-*.checkpoint")] else ""

def end_run(path, status, reason, hint, step):
	line = log_line("status", status=status, reason=reason, hint=hint)
	(path / ".reserve").unlink(missing_ok=True)
	for write in (lambda: append(path / "train.log", line),
				  lambda: write_json(path / "status.json", {"status": status, "reason": reason, "hint": hint, "step": step})):
		with contextlib.suppress(OSError):
			write()
	return line

def append(path, line):
	with open(path, "a", encoding="utf-8") as file:
		file.write(line + "\n")

def resume_folder(resume, run_id, backend):
	paths = [Path(resume)] if resume != "auto" else [Path("runs", run_id)] if run_id else sorted(
		filter(Path.is_dir, Path("runs").glob("*")), key=lambda path: path.stat().st_mtime, reverse=True)
	for path in paths:
		status = read_json(path / "status.json").get("status")
		theirs = read_json(path / "settings.json").get("backend", backend)
		if resume != "auto":
			if not status:
				raise UserError(f"RESUME={path} is no folder of a run: name one, runs/..., or use RESUME=auto")
			if status in ("finished", "capped"):
				raise UserError(f"RESUME={path} has ended ({status}): there is nothing to continue")
		if theirs != backend and (resume != "auto" or run_id):
			raise UserError(f"{path} is a run of the {theirs} trainer: continue it with that one")
		if status and status not in ("finished", "capped") and (resume != "auto" or run_id or (theirs == backend and resume_hint(path))):
			return str(path)
	return ""

def stored_settings(folder):
	return {name: str(value) for name, value in read_json(Path(folder, "settings.json")).items()} if folder else {}

def check_free(path, settings):
	above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
	if not above.is_dir() or not os.access(above, os.W_OK):
		raise UserError(f"{path} cannot be written: {above} is no folder that is yours: start in one that is")
	if not settings.resume and path.exists() and any(file.stat().st_size for file in path.glob("[!.]*")):
		raise UserError(f"{path} is there already: choose another RUN_ID, remove it, or continue it with --resume {path}")
	with contextlib.suppress(FileNotFoundError), open(path / "train.log", "rb") as log:
		if not locked(log, fcntl.LOCK_SH):
			raise UserError(f"{path} is in use by another run: wait for its end, or stop it")
	if (free := disk_free(path)) < (need := disk_need(settings)):
		raise UserError(f"the disk of {path} has {free >> 20} MiB free, the run may need {need >> 20} MiB: free some space", "disk_full")

class RunFolder:

	def __init__(self, path, settings):
		check_free(path, settings)
		self.path = path
		try:
			path.mkdir(parents=True, exist_ok=True)
			self.file = open(path / "train.log", "a+b", buffering=0)
			if not locked(self.file):
				raise UserError(f"{path} is in use by another run: wait for its end, or stop it")
			for left in path.glob(".*.tmp"):
				left.unlink()
			write_file(path / ".reserve", os.urandom(1 << 14))
			write_json(path / "status.json", {"status": "running", "reason": ""})
		except OSError as error:
			raise UserError(f"{path} cannot be written: {error.strerror}: start in a folder that is yours, on a disk with room") from error
		if self.file.tell() and os.pread(self.file.fileno(), 1, self.file.tell() - 1) != b"\n":
			self.file.write(b"\n")

	def log(self, kind, **values):
		line = log_line(kind, **values)
		with contextlib.suppress(OSError):
			self.file.write(f"{line}\n".encode())
		say(line)

	def end(self, status, reason, hint, step):
		say(end_run(self.path, status, reason, hint, step))
		self.file.close()

def checkpoints_bytes(settings):
	return count_params(settings) * (24 if settings.compute_dtype == "float64" else 12)

def disk_need(settings):
	return 3 * checkpoints_bytes(settings) + 2 * count_params(settings) + (64 << 20)

def disk_free(path):
	return shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.exists())).free


# ===== common/checkpoint.py
import hashlib
from concurrent.futures import ThreadPoolExecutor
import safetensors.numpy

CHECKPOINT_FORMAT = 1
HEADER_LIMIT = 1 << 20
FREE = ("data_path tokenizer_path run_id micro_batch_tokens loss_chunk warmup_steps val_loss_every val_tokens_limit train_log_every resume "
		"checkpoint_every rank_timeout compile device eval_seq_len eval_stride ttt_lr ttt_chunk quant_levels").split()

def run_identity(settings, data, code):
	return {name.upper(): value for name, value in vars(settings).items()
			if name not in FREE or (name == "quant_levels" and settings.qat_start < 1)} | {
		"code": hashlib.sha256(code).hexdigest(), "data": data.sha256, "tokenizer": data.tokenizer_sha256}

def check_identity(identity, theirs, where=""):
	wrong = [f"{key} is {identity.get(key)!s:.40}, there {theirs.get(key)!s:.40}" for key in sorted(identity | theirs)
			 if identity.get(key) != theirs.get(key)]
	if wrong:
		raise UserError(f"{where}it is of another run: {'; '.join(wrong)}: use the settings and data of that run, and the code in its folder",
						"bad_settings")

def write_checkpoint(folder, step, elapsed, identity, arrays):
	meta = json.dumps({"format": CHECKPOINT_FORMAT, "step": step, "elapsed": elapsed, "identity": identity}, sort_keys=True)
	header, parts, end = {"__metadata__": {"parity_golf": meta}}, [], 0
	for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
		array = arrays[name]
		parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
		header[name] = {"dtype": f"F{8 * array.itemsize}", "shape": array.shape, "data_offsets": (end, end := end + array.nbytes)}
	text = json.dumps(header, separators=(",", ":")).encode()
	text += b" " * (-len(text) % 8)
	parts = [len(text).to_bytes(8, "little"), text, *parts]
	digest = hashlib.sha256()
	for part in parts:
		digest.update(part)
	path = write_file(folder / f"step-{step:08}.checkpoint", *parts, digest.digest())
	for old in checkpoints(folder)[2:]:
		old.unlink()
	return path

def checkpoints(folder):
	return sorted(folder.glob("step-*.checkpoint"), key=lambda path: (len(path.name), path.name), reverse=True)

def decode_checkpoint(file, identity, expected):
	size = file.seek(0, os.SEEK_END) - 32
	file.seek(0)
	digest, left = hashlib.sha256(), size
	while left > 0 and (part := file.read(min(left, 1 << 24))):
		digest.update(part)
		left -= len(part)
	if left or file.read() != digest.digest():
		raise ValueError("is damaged or cut short")
	file.seek(0)
	try:
		head = file.read(min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT))
		meta = json.loads(json.loads(head)["__metadata__"]["parity_golf"])
		found, step, elapsed, theirs = (meta[key] for key in ("format", "step", "elapsed", "identity"))
	except (LookupError, TypeError, ValueError, RecursionError):
		raise ValueError("has no readable header") from None
	if found != CHECKPOINT_FORMAT:
		raise ValueError(f"is of format {found}, this program reads {CHECKPOINT_FORMAT}")
	if not (type(step) is int and 0 <= step < 2**31 and type(elapsed) is float and 0 <= elapsed < math.inf and isinstance(theirs, dict)):
		raise ValueError("has no step, time or identity")
	check_identity(identity, theirs)
	if size > HEADER_LIMIT + sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in expected.values()):
		raise ValueError("is larger than its settings allow")
	file.seek(0)
	try:
		arrays = safetensors.numpy.load(file.read(size))
	except (LookupError, ValueError, safetensors.SafetensorError) as error:
		raise ValueError(f"is no safetensors file ({error})") from None
	check_tensors(expected, {name: (array.shape, str(array.dtype)) for name, array in arrays.items()})
	return step, elapsed, arrays

def read_checkpoint(folder, identity, expected, warn):
	damaged = []
	if not checkpoints(folder):
		stored = read_json(folder / "settings.json").get("identity")
		if isinstance(stored, dict):
			check_identity(identity, stored, f"{folder}: ")
		return 0, 0.0, {}, damaged
	for path in checkpoints(folder):
		try:
			with open(path, "rb") as file:
				return *decode_checkpoint(file, identity, expected), damaged
		except UserError as error:
			raise UserError(f"{path}: {error}", error.status) from None
		except (OSError, ValueError) as error:
			damaged.append(path)
			warn(f"{path} {error}")
	raise UserError(f"{folder} has no checkpoint that can be used: start a new run")

class Saver:

	def __init__(self, folder, identity, every, log, step=0, elapsed=0.0, damaged=()):
		self.folder, self.identity, self.log, self.damaged = folder, identity, log, damaged
		self.number, self.by_time = float(every.removesuffix("s")), every.endswith("s")
		self.saved, self.last, self.pending = step or -1, elapsed if self.by_time else step, None
		self.thread = ThreadPoolExecutor(1)

	def due(self, step, elapsed):
		self.collect(False)
		return 0 < self.number <= (elapsed if self.by_time else step) - self.last and not self.pending

	def save(self, step, elapsed, trainer):
		if step != self.saved:
			self.collect()
			arrays = trainer.weights() | trainer.optimizer_state()
			self.saved, self.last = step, elapsed if self.by_time else step
			self.pending = self.thread.submit(self.write, step, elapsed, arrays)

	def write(self, step, elapsed, arrays):
		start = time.perf_counter()
		for path in self.damaged:
			path.replace(path.with_suffix(".damaged"))
		self.damaged = ()
		path = write_checkpoint(self.folder, step, elapsed, self.identity, arrays)
		return {"step": step, "bytes": path.stat().st_size, "seconds": time.perf_counter() - start}

	def collect(self, wait=True):
		if self.pending and (wait or self.pending.done()):
			try:
				self.log("checkpoint", **self.pending.result())
			except Exception as error:
				self.log("checkpoint_failed", step=self.saved, reason=f"{error}: the checkpoints before it stay")
				self.saved = -1
			self.pending = None


# ===== common/tokenizer.py
import sentencepiece

SPACE_MARKER = "\u2581"
MODEL_LIMIT = 16 << 20

class Tokenizer:

	def __init__(self, encode, bos_id, token_bytes, byte_counts, leading_space, boundary):
		self.encode = encode
		self.bos_id, self.vocab_size, self.token_bytes = bos_id, len(token_bytes), token_bytes
		self.byte_counts = np.array(byte_counts, np.int32)
		self.leading_space, self.boundary = np.array(leading_space, bool), np.array(boundary, bool)

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
	if b"".join(token_bytes[i] for i in encode(probe)) != probe.encode():
		raise ValueError("it changes text (normalization, dropped spaces, no byte fallback): bytes cannot be counted")
	return tokenizer


# ===== common/dataset.py
from collections import namedtuple

Data = namedtuple("Data", "train val val_tokens partial tokenizer tokenizer_path tokenizer_sha256 manifest_sha256 sha256")

def open_data(settings):
	folder = Path(settings.data_path)
	train, val = ([open_shard(path) for path in find_shards(folder, split)] for split in ("train", "val"))
	file, manifest, named, promised = folder / "manifest.json", b"", "", ""
	if file.is_file():
		manifest = file.read_bytes()
		try:
			found = json.loads(manifest)
			named, promised = (str(found["tokenizer"][key]) for key in ("file", "sha256"))
			listed = {str(shard["file"]): shard.get("tokens") for split in found.get("splits", {}).values() for shard in split["shards"]}
		except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
			raise UserError(f"{file} is no data manifest: make the data again") from None
		if missing := [name for name in listed if not (folder / name).is_file()]:
			raise UserError(f"{folder / missing[0]} is missing ({len(missing)} of {len(listed)} shards that {file.name} names): get the data again")
		for shards, unlisted in ((train, None), (val, 0)) if listed else ():
			for shard in shards:
				name = Path(shard.filename).name
				if listed.get(name, unlisted) not in (None, len(shard)):
					raise UserError(f"{shard.filename} has {len(shard)} tokens, {file.name} says {listed.get(name, 'nothing of it')}: "
									"get the data again")
	path = settings.tokenizer_path or (named if named in ("", "bytes") else str(folder / named))
	if not path:
		raise UserError(f"DATA_PATH={folder} has no manifest.json: set TOKENIZER_PATH to the tokenizer of its shards")
	tokenizer = load_tokenizer(path)
	digest = hashlib.sha256(b"bytes" if path == "bytes" else Path(path).read_bytes()).hexdigest()
	if promised not in ("", digest):
		raise UserError(f"tokenizer {path} is not the one of the shards (SHA-256 {digest[:12]}, in {file} {promised[:12]}): "
						"leave TOKENIZER_PATH empty, or make the data again")
	if settings.vocab_size not in (0, tokenizer.vocab_size):
		raise UserError(f"VOCAB_SIZE={settings.vocab_size}, but tokenizer {path} has {tokenizer.vocab_size} ids: leave VOCAB_SIZE unset")
	for shard in val:
		check_ids(shard, tokenizer.vocab_size, shard.filename)
	whole = hashlib.sha256(manifest)
	for shard in [*train, *val]:
		whole.update(b"%d" % len(shard))
		for start in range(0, len(shard), max(4096, len(shard) // 64)):
			whole.update(shard[start:start + 4096].tobytes())
		whole.update(shard[-4096:].tobytes())
	train, val = TokenStream(train), TokenStream(val)
	if val.length <= settings.train_seq_len:
		raise UserError(f"validation in {folder} has {val.length} tokens, too few for one row and its target: "
						f"TRAIN_SEQ_LEN={settings.train_seq_len} must be less")
	count = min(settings.val_tokens_limit or val.length, val.length)
	partial = f" partial:{count}/{val.length}" if count < val.length else ""
	named = hashlib.sha256(manifest).hexdigest() if manifest else "none"
	return Data(train, val, count, partial, tokenizer, path, digest, named, whole.hexdigest())


# ===== common/zstream.py
_CHUNK_BYTES = 512
_MOVE_BYTES = 1 << 14
_PIECE_BYTES = 1 << 18
_STORED_BYTES = 65_535
_HEADER_BITS = 600
_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)

def zlib_encode(data):
	n = len(data)
	cuts, codes = _blocks(data)
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

def zlib_size(data):
	bits, (cuts, codes) = 0, _blocks(data)
	for (size, head, _), start, stop in zip(codes, cuts, cuts[1:]):
		bits += size if head else 0
		for i in () if head else range(start, max(stop, 1), _STORED_BYTES):
			bits = -(-(bits + 3) // 8) * 8 + 32 + 8 * min(_STORED_BYTES, stop - i)
	return 2 + -(-bits // 8) + 4

def _blocks(data):
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
	return cuts, codes

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
BUDGET_BYTES = 16_000_000
MODEL_FORMAT = 1

def pack_payload(settings, stored, levels=None):
	head = {"format": MODEL_FORMAT, "settings": model_settings(settings)}
	other = {group: value for group, value in (levels or group_levels(settings)).items() if value != 127}
	if other:
		head["levels"] = {group: value if value == "fp16" or value % 1 else int(value) for group, value in other.items()}
	return safetensors.numpy.save(stored, metadata={"parity_golf": json.dumps(head, sort_keys=True, separators=(",", ":"))})

def encode_model(settings, weights, levels=None):
	payload = pack_payload(settings, quantize_weights(settings, weights, levels), levels)
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

def read_header(payload):
	try:
		size = min(int.from_bytes(payload[:8], "little"), 1 << 20)
		meta = json.loads(json.loads(payload[8:8 + size])["__metadata__"]["parity_golf"])
		found, given, other = meta["format"], dict(meta["settings"]), dict(meta.get("levels", {}))
	except (LookupError, TypeError, ValueError, RecursionError):
		raise ValueError("has no readable parity_golf header") from None
	if found != MODEL_FORMAT:
		raise ValueError(f"is of format {found}, this program reads {MODEL_FORMAT}")
	fields = {f.name: f for f in dataclasses.fields(ModelSettings)}
	if wrong := (given.keys() ^ fields.keys()) - (fields.keys() & LATER):
		raise ValueError(f"has settings {sorted(wrong)} that are missing or unknown")
	settings = Settings(**{name: parse_setting(fields[name], value if fields[name].type is type(value) is str else repr(value))
						   for name, value in given.items()})
	wrong = setting_conflicts(dataclasses.replace(settings, train_batch_tokens=settings.train_seq_len,
												  micro_batch_tokens=settings.train_seq_len))
	wrong += ["VOCAB_SIZE=0"] * (not settings.vocab_size)
	if wrong:
		raise ValueError("has settings that cannot be: " + "; ".join(wrong))
	levels = group_levels(settings)
	for group, value in other.items():
		if group not in levels:
			raise ValueError(f"has levels for {group!r:.40}, which is not one of {', '.join(levels)}")
		if value != "fp16" and not (type(value) in (int, float) and 2 <= value <= MOST_LEVELS):
			raise ValueError(f"has {group} levels that are neither a number from 2 to {MOST_LEVELS} nor fp16")
	return settings, levels | other

def decode_model(data, max_payload=1 << 28):
	settings, _, _, weights = read_model(data, max_payload)
	return settings, weights

def read_model(data, max_payload=1 << 28):
	try:
		payload = inflate_bounded(data, max_payload)
		settings, levels = read_header(payload)
		if (params := count_params(settings)) > len(payload):
			raise ValueError(f"has {len(payload)} bytes inside, too few for the {params} parameters of its settings")
		stored = safetensors.numpy.load(payload)
		weights = dequantize_weights(settings, stored, levels)
		if pack_payload(settings, stored, levels) != payload:
			raise ValueError("is not in canonical form")
	except (ValueError, KeyError, safetensors.SafetensorError) as error:
		raise UserError(f"the model file {error}: it was damaged or not written by this program") from None
	return settings, levels, stored, weights


# ===== common/bpb.py
EVAL_SECONDS = 600.0

def bits_per_byte(nats, num_bytes):
	return nats / math.log(2) / num_bytes

def eval_windows(num_tokens, seq_len, stride, first=1):
	targets = np.arange(first, num_tokens, stride)
	scored = np.minimum(stride, num_tokens - targets)
	starts = np.maximum(0, targets - 1 - (seq_len - stride))
	return np.stack([starts, targets - 1 + scored - starts, scored], axis=1)

def eval_batch(stream, windows, rows, seq_len):
	tokens, scored = np.zeros((rows, seq_len + 1), np.int32), np.zeros((rows, seq_len), bool)
	for row, (start, count, last) in enumerate(windows):
		tokens[row, :count + 1] = stream.read(start, count + 1)
		scored[row, count - last:count] = True
	return tokens, scored

def eval_chunks(stream, num_tokens, length, bos_id):
	first = 1
	while first < num_tokens:
		borders = np.flatnonzero(stream.read(first, min(length, num_tokens - first)) == bos_id)
		end = first + int(borders[0]) + 1 if len(borders) else min(first + length, num_tokens)
		yield first, end, len(borders) > 0
		first = end

def eval_plan(stream, num_tokens, seq_len, stride, chunk=0, bos_id=None):
	pending, adapted = [], False
	for first, end, border in eval_chunks(stream, num_tokens, chunk or num_tokens, bos_id):
		pending.append(eval_windows(end, seq_len, stride, first))
		starts = np.arange(end - 1 - seq_len, max(-1, first - 1 - seq_len), -seq_len)[::-1]
		last, step = end == num_tokens, not border and len(starts) > 0
		if last or step or (border and adapted):
			yield "score", np.concatenate(pending)
			pending = []
		if step and not last:
			yield "train", starts
		elif border and adapted:
			yield "restore", None
		adapted = step

def eval_lengths(settings):
	seq_len = settings.eval_seq_len or settings.train_seq_len
	return seq_len, settings.eval_stride or seq_len

def evaluate(trainer, settings, stream, tokenizer, num_tokens, each=iter, final=False):
	seq_len, stride = eval_lengths(settings) if final else (settings.train_seq_len, settings.train_seq_len)
	chunk, bos_id, trained = 0, None, None
	rows = micro_batch_rows(settings, rank_rows(settings, trainer.rank, trainer.world_size)[1])
	if seq_len != settings.train_seq_len:
		rows = max(1, settings.micro_batch_tokens // seq_len)
	if final and settings.ttt_lr:
		chunk, bos_id = int(settings.ttt_chunk.rstrip("d")), tokenizer.bos_id if settings.ttt_chunk.endswith("d") else None
		rows, trained = min(rows, math.ceil(math.ceil(chunk / stride) / trainer.world_size)), trainer.weights()

	def work():
		for act, what in eval_plan(stream, num_tokens, seq_len, stride, chunk, bos_id):
			mine = what[trainer.rank::trainer.world_size] if act == "score" else []
			yield from ((act, mine[first:first + rows]) for first in range(0, len(mine), rows))
			if act != "score":
				yield act, what

	total = np.zeros(3)
	for act, what in each(work()):
		if act == "train":
			trainer.sgd_step(np.stack([stream.read(start, seq_len + 1) for start in what]), settings.ttt_lr)
		elif act == "restore":
			trainer.load_weights(trained)
		else:
			tokens, scored = eval_batch(stream, what, rows, seq_len)
			nats = np.asarray(trainer.token_nats(tokens), np.float64)
			num_bytes = count_bytes(tokenizer, tokens[:, :-1], tokens[:, 1:])
			total += nats[scored].sum(), scored.sum(), num_bytes[scored].sum()
	if trained:
		trainer.load_weights(trained)
	nats, count, num_bytes = trainer.all_sum(total)
	return nats / count, bits_per_byte(nats, num_bytes), int(count), int(num_bytes)


# ===== common/fit.py
LEAST_LEVELS, PASSES = 2, 8
LOOSE = 0.001

def search_levels(size, budget, slope):
	low, high = math.log2(LEAST_LEVELS), math.log2(MOST_LEVELS)
	x, fits, over, last = math.log2(127), None, None, None
	for number in range(1, 2 * PASSES):
		levels = min(MOST_LEVELS, max(LEAST_LEVELS, float(f"{2**x:.5g}")))
		found = size(levels)
		point = x, found, levels
		if last and (found - last[1]) * (x - last[0]) > 0:
			slope = (found - last[1]) / (x - last[0])
		last = point
		if found <= budget:
			fits = max(fits or point, point)
		else:
			over = min(over or point, point)
		end = levels == (MOST_LEVELS if found <= budget else LEAST_LEVELS)
		close = 0 <= budget - found <= LOOSE * budget or (fits and over and over[0] - fits[0] < 0.01)
		if end or close or (fits and number >= PASSES):
			break
		x = min(high, max(low, x + (budget * (1 - LOOSE / 2) - found) / slope)) if number < PASSES else low
		if (fits and x <= fits[0]) or (over and x >= over[0]):
			x = ((fits or (low,))[0] + (over or (high,))[0]) / 2
	return fits and fits[2]

def with_auto(groups, levels):
	return {group: levels if value == "auto" else value for group, value in groups.items()}

def bit_bytes(settings, groups):
	return sum(math.prod(p.shape) for p in param_table(settings).values() if groups.get(p.group) == "auto") / 8

def fit_levels(settings, weights, budget):
	groups, tried = group_levels(settings), {}

	def size(number):
		levels = with_auto(groups, number)
		stored = quantize_weights(settings, weights, levels)
		tried[number] = (levels, zlib_size(pack_payload(settings, stored, levels)),
						 relative_error(settings, weights, dequantize_weights(settings, stored, levels)))
		return tried[number][1]

	chosen = search_levels(size, budget, bit_bytes(settings, groups))
	if chosen is None:
		raise UserError(too_large(settings, tried[LEAST_LEVELS][1], budget), "over_budget")
	return with_auto(groups, chosen), [tried[number] for number in sorted(tried, key=lambda number: number == chosen)]

def too_large(settings, least, budget):
	params = count_params(settings)
	many = math.ceil(params * (1 - budget / least))
	fewer = next((n for n in range(settings.num_layers - 1, 0, -1)
				  if count_params(dataclasses.replace(settings, num_layers=n)) <= params - many), None)
	hint = f"NUM_LAYERS={fewer} would fit" if fewer else "use a smaller MODEL_DIM"
	return (f"QUANT_LEVELS={settings.quant_levels}: at {LEAST_LEVELS} levels the model has {least:,} bytes, {least - budget:,} more than "
			f"the {budget:,} that the code leaves: of its {params:,} parameters about {many:,} are too many; {hint}")

def encode_within(settings, weights, budget, log):
	levels, tried = group_levels(settings), []
	if "auto" in levels.values():
		levels, tried = fit_levels(settings, weights, budget)
	for found, size, error in tried:
		text = ",".join(f"{group}={value}" if value == "fp16" else f"{group}={value:.5g}" for group, value in found.items())
		log("quant", levels=text, bytes=size, error=error)
	return encode_model(settings, weights, levels)


# ===== common/ranks.py
import platform
import signal
import threading

BEAT_SECONDS, RECORD_BYTES = 0.5, 4096
PATIENCE = 600.0
ORDERLY = "finished", "capped", "interrupted", "over_budget"

class Interrupt:

	def __init__(self):
		self.asked, self.waits = 0.0, False

	def __call__(self, number, frame):
		now = time.monotonic()
		again, early = self.asked > 0, now - self.asked < 1
		self.asked = self.asked if again and early else now
		if not (early if again else self.waits):
			raise KeyboardInterrupt

class RankWatch:

	def __init__(self, path, rank, world_size, timeout):
		self.path, self.rank, self.timeout, self.steps = path, rank, timeout, 0
		self.state = {"pid": os.getpid(), "host": platform.node(), "ended": "", "reason": "", "beat": 0,
					  "far": [], "place": "the beginning", "limit": PATIENCE}
		self.world_size, self.peers, self.thread, self.states, self.lock = world_size, {}, None, {}, threading.Lock()
		self.since = {}

	def hold(self):
		if self.world_size > 1 and self.path.is_dir():
			self.file = os.open(self.path / f"rank{self.rank}", os.O_RDWR | os.O_CREAT)
			end = time.monotonic() + 10 * BEAT_SECONDS
			while not locked(self.file):
				if time.monotonic() > end:
					raise UserError(f"rank {self.rank} of an earlier run in {self.path} still lives: stop that process, then go on")
				time.sleep(BEAT_SECONDS / 10)
			self.beat()

	def start(self):
		for rank in {*range(self.world_size)} - {self.rank}:
			if (path := self.path / f"rank{rank}").exists():
				self.peers[rank] = [os.open(path, os.O_RDONLY), b"", 0.0]
		if self.peers:
			self.thread = threading.Thread(target=self.run, daemon=True)
			self.thread.start()

	def mark(self, far, place, limit):
		if self.thread:
			self.state |= {"far": far, "place": place, "limit": limit}
			self.beat()

	def each(self, far, place, limit):
		def marked(items):
			for number, item in enumerate(items):
				self.mark([*far, number], place, limit)
				yield item
			self.mark([*far, 1 << 40], place, PATIENCE)
		return marked

	def close(self, status, reason, doubtful=False):
		if self.thread:
			if doubtful:
				self.thread.join(4 * BEAT_SECONDS)
			self.state |= {"ended": status, "reason": reason[:500].encode()[:2000].decode(errors="ignore")}
			self.beat()

	def beat(self):
		with self.lock, contextlib.suppress(OSError):
			self.state["beat"] += 1
			os.pwrite(self.file, json.dumps(self.state, ensure_ascii=False).encode().ljust(RECORD_BYTES), 0)

	def run(self):
		before = {}
		while not self.state["ended"]:
			self.beat()
			found = self.look()
			if found and found.keys() == before.keys():
				self.leave(found)
			before, clock = found, time.monotonic()
			time.sleep(BEAT_SECONDS)
			if time.monotonic() - clock > 5 * BEAT_SECONDS:
				self.since, self.peers = {}, {rank: [file, b"", 0.0] for rank, (file, *_) in self.peers.items()}

	def look(self):
		now, wrong, states = time.monotonic(), {}, {self.rank: dict(self.state)}
		for rank, peer in self.peers.items():
			record = os.pread(peer[0], RECORD_BYTES, 0)
			if record != peer[1]:
				peer[1:] = record, now
			try:
				state = json.loads(record)
			except ValueError:
				if not (state := self.states.get(rank)):
					continue
			states[rank] = state
			place = f"rank {rank} (process {state['pid']} on {state['host']})"
			if state["ended"]:
				if state["ended"] not in ORDERLY or (state["ended"] == "interrupted" and now - peer[2] > 3):
					wrong[rank] = "rank_lost" if state["ended"] == "failed" else state["ended"], f"{place} failed: {state['reason']}"
			elif dead(peer[0]):
				wrong[rank] = "rank_lost", f"{place} died in {state['place']}"
			elif now - peer[2] > self.timeout:
				wrong[rank] = "timeout", f"{place} hangs in {state['place']}: no sign of life for {now - peer[2]:.0f} s"
		self.since = {rank: (state["far"], self.since[rank][1] if self.since.get(rank, [None])[0] == state["far"] else now)
					  for rank, state in states.items()}
		last = min(far for far, _ in self.since.values())
		self.states = states
		late = {rank: ("timeout", f"rank {rank} hangs in {states[rank]['place']}, for {now - since:.0f} s")
				for rank, (far, since) in self.since.items() if far == last and now - since > states[rank]["limit"]}
		if len(late) == len(states):
			late = dict.fromkeys(late, ("timeout", f"no rank goes on in {self.state['place']}, for {now - self.since[self.rank][1]:.0f} s: one of "
												   "them hangs, or what connects them"))
		return wrong or late

	def leave(self, wrong):
		status, reasons = next(iter(wrong.values()))[0], "; ".join(dict.fromkeys(reason for _, reason in wrong.values()))
		others = [r for r, state in self.states.items() if r not in wrong and not state["ended"]]
		if self.rank == min(others or self.states):
			for rank in wrong.keys() & self.peers.keys() if others else ():
				state = self.states[rank]
				if not state["ended"] and state["host"] == platform.node() and not dead(self.peers[rank][0]):
					os.kill(state["pid"], signal.SIGKILL)
			say(f"error: {reasons}", sys.stderr)
			say(end_run(self.path, status, reasons, resume_hint(self.path), self.steps))
		else:
			time.sleep(4 * BEAT_SECONDS)
		os._exit(2)

def dead(file):
	if free := locked(file, fcntl.LOCK_SH):
		fcntl.flock(file, fcntl.LOCK_UN)
	return free


# ===== common/schedule.py
def run_progress(settings, step, elapsed_seconds):
	share = step / settings.iterations if settings.iterations else 1.0
	if settings.max_wallclock_seconds > 0:
		share = max(share, elapsed_seconds / settings.max_wallclock_seconds)
	return min(share, 1.0)

def lr_scale(settings, progress):
	return min(1.0, (1.0 - progress) / settings.warmdown_fraction) if settings.warmdown_fraction else 1.0

def ema_decay(settings, step):
	return min(settings.ema_decay, (1 + step) / (10 + step))

def muon_momentum(settings, step):
	steps = settings.muon_momentum_warmup_steps
	part = min(step / steps, 1.0) if steps else 1.0
	return (1.0 - part) * settings.muon_momentum_warmup_start + part * settings.muon_momentum


# ===== common/loop.py
class Agreed(UserError):
	"""Raised on every rank at the same place."""

def batch_of(trainer, settings, data, step):
	with failing_as("bad_data"):
		tokens = step_rows(data.train, settings, step, trainer.rank, trainer.world_size)
		if tokens.max() >= settings.vocab_size:
			for shard in data.train.shards:
				check_ids(shard, settings.vocab_size, shard.filename)
	return tokens

def warm_up(trainer, settings, data, watch):
	if settings.warmup_steps:
		weights, state = trainer.weights(), trainer.optimizer_state()
		tokens = batch_of(trainer, settings, data, 0)
		for _ in watch.each([-1], "the warm-up", PATIENCE)(range(settings.warmup_steps)):
			trainer.train_step(tokens, 1.0, settings.muon_momentum)
		trainer.load_weights(weights)
		trainer.load_optimizer_state(state)
	trainer.wait()

def train(trainer, settings, data, log, saver, watch, interrupt, step=0, elapsed=0.0):
	first, cap, begun, val_bpb = step, settings.max_wallclock_seconds or math.inf, [], None

	def look_at_losses(ahead=0):
		while len(begun) > ahead:
			at, tokens, loss = begun.pop(0)
			if not math.isfinite(value := float(loss)):
				watch.steps = at
				raise Agreed(nonfinite_reason(trainer, settings, tokens, at, value), "nonfinite")

	bar = tqdm(total=1.0, disable=trainer.rank > 0 or not sys.stderr.isatty(), leave=False,
			   bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
	shown, clock, interrupt.waits = -math.inf, time.perf_counter(), True
	while True:
		next_end = elapsed + (2 + trainer.steps_ahead) * elapsed / max(step, 1)
		last = step == settings.iterations or next_end > cap
		limit = max(settings.rank_timeout, 10 * elapsed / step) if step > first else PATIENCE
		if last or (settings.val_loss_every and step % settings.val_loss_every == 0):
			trainer.wait()
			look_at_losses()
			elapsed, _ = agree(trainer, elapsed + time.perf_counter() - clock)
			own = None
			try:
				watch.mark([step, 0], f"the checkpoint of step {step}", PATIENCE)
				if saver and (last or (step > first and trainer.world_size > 1)):
					saver.save(step, elapsed, trainer)
				if settings.ema_decay:
					own = trainer.weights()
					trainer.load_weights(trainer.average())
				interrupt.waits = False
				if interrupt.asked:
					raise KeyboardInterrupt
				val_loss, val_bpb, _, _ = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens,
												   watch.each([step, 0], f"the validation after step {step}", limit if val_bpb else PATIENCE))
				interrupt.waits = True
			except KeyboardInterrupt:
				if own:
					trainer.load_weights(own)
				if saver:
					saver.save(step, elapsed, trainer)
				raise
			if own:
				trainer.load_weights(own)
			log("val", step=step, iterations=settings.iterations, val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * elapsed,
				avg=1e3 * elapsed / max(step, 1), partial=data.partial)
			clock = time.perf_counter()
		if last:
			break
		watch.mark([step, 1, 0], f"step {step + 1}", limit)
		progress = run_progress(settings, step, elapsed)
		trainer.rounding = settings.qat_start <= progress < 1
		tokens = batch_of(trainer, settings, data, step)
		watch.mark([step, 1, 1], f"step {step + 1}", limit)
		loss = trainer.train_step(tokens, lr_scale(settings, progress), muon_momentum(settings, step))
		begun.append((step, tokens, loss))
		look_at_losses(trainer.steps_ahead)
		if settings.ema_decay:
			trainer.update_average(ema_decay(settings, step))
		watch.steps = step = step + 1
		now = time.perf_counter()
		(elapsed, stop), clock = agree(trainer, elapsed + now - clock, interrupt.asked > 0), now
		logged = step <= 10 or step % settings.train_log_every == 0
		if stop or logged:
			look_at_losses()
		if stop:
			watch.mark([step, 0], f"the checkpoint of step {step}", PATIENCE)
		if saver and (stop or saver.due(step, elapsed)) and math.isfinite(float(loss)):
			saver.save(step, elapsed, trainer)
		if stop:
			raise Agreed(f"interrupted by a signal after step {step}", "interrupted")
		if logged or (not bar.disable and elapsed - shown > 0.5):
			shown, value, rate = elapsed, float(loss), step * settings.train_batch_tokens / elapsed
			bar.n = run_progress(settings, step, elapsed)
			bar.set_postfix_str(f" step {step} loss {value:.3f} {rate:,.0f} tok/s")
			if logged:
				log("step", step=step, iterations=settings.iterations, train_loss=value, ms=1e3 * elapsed, avg=1e3 * elapsed / step,
					rate=rate)
	bar.close()
	trainer.rounding = False
	status = "finished" if step == settings.iterations else "capped"
	if status == "capped":
		log("stop", ms=1e3 * elapsed, step=step, iterations=settings.iterations)
	log("memory", mib=int(trainer.all_sum(np.array([float(trainer.peak_memory())]))[0] / trainer.world_size) >> 20)
	rate = step * settings.train_batch_tokens / elapsed if step else 0.0
	flops, peak = rate * flops_per_token(settings), trainer.matmul_flops() * trainer.world_size
	log("throughput", rate=rate, flops=flops / 1e9, share=100 * flops / peak, peak=peak / 1e9)
	return status, (f"  trained   {step:,} steps, {step * settings.train_batch_tokens:,} tokens in {elapsed:.1f} s, {rate:,.0f} tokens/s\n"
					f"  before    val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}\n")

def agree(trainer, seconds=0.0, failed=False):
	if trainer.world_size == 1:
		return seconds, failed
	total = trainer.all_sum(np.array([seconds if trainer.rank == 0 else 0.0, float(failed)]))
	return float(total[0]), bool(total[1])

def together(trainer, act):
	made = problem = None
	try:
		made = act()
	except (UserError, OSError) as error:
		problem = error
	if agree(trainer, failed=problem is not None)[1]:
		trainer.close()
		raise problem or Agreed("another rank cannot go on, and says why")
	return made

def nonfinite_reason(trainer, settings, tokens, step, value):
	world, alone = trainer.world_size, np.ones(trainer.world_size)
	if world > 1:
		alone = trainer.all_sum(np.eye(world)[trainer.rank] * (not trainer.finite_alone(tokens)))
	places = []
	for rank in np.flatnonzero(alone).tolist() or range(world):
		row, rows = rank_rows(settings, rank, world)
		start = step * settings.train_batch_tokens + row * settings.train_seq_len
		places.append(f"rank {rank}, tokens {start} to {start + rows * settings.train_seq_len} of the train stream")
	return (f"the training loss or a gradient is {value} at step {step + 1} ({'; '.join(places)}). Nothing was updated: lower MATRIX_LR, "
			"TIED_EMBED_LR and SCALAR_LR, or set GRAD_CLIP_NORM=1")


# ===== common/finish.py
def finish(trainer, settings, data, code_bytes, folder, log, watch):
	weights = {name: np.asarray(w, np.float32) for name, w in (trainer.average() if settings.ema_decay else trainer.weights()).items()}
	if name := unstorable(settings, weights):
		raise Agreed(f"{name} is not finite or too large to be stored (8e6 at 127 levels): lower MATRIX_LR, TIED_EMBED_LR and SCALAR_LR", "nonfinite")
	total = 0
	watch.mark([watch.steps, 2], "writing the model", PATIENCE)
	budget = BUDGET_BYTES - 1 - code_bytes
	made = together(trainer, lambda: encode_within(settings, weights, budget, log) if folder else None)
	if folder:
		model, payload = made
		path = write_file(folder.path / "model.int8.zlib", model)
		log("model", bytes=len(model), payload=len(payload), zlib9=len(zlib.compress(payload, 9)), sha256=hashlib.sha256(model).hexdigest())
		total = code_bytes + len(model)
		log("code_size", bytes=code_bytes)
		log("total", bytes=total, cap=BUDGET_BYTES, left=BUDGET_BYTES - 1 - total)
		written = path.read_bytes()
		if written != model:
			raise UserError(f"{path} does not read back as it was written: there is no score; check the disk")
		_, weights = decode_model(written)
	trainer.load_weights({name: trainer.all_sum(weights[name] if folder else np.zeros_like(weights[name])) for name in sorted(weights)})
	clock = time.perf_counter()
	val_loss, val_bpb, tokens, num_bytes = evaluate(trainer, settings, data.val, data.tokenizer, data.val_tokens,
													watch.each([watch.steps, 3], "the final evaluation", PATIENCE), final=True)
	seconds, (seq_len, stride) = time.perf_counter() - clock, eval_lengths(settings)
	if settings.ttt_lr and not math.isfinite(val_loss):
		raise Agreed(f"test-time training ends in a loss of {val_loss}: lower TTT_LR={settings.ttt_lr}", "nonfinite")
	ttt = f"lr {settings.ttt_lr}, chunk {settings.ttt_chunk}" if settings.ttt_lr else "off"
	log("scored", tokens=tokens, bytes=num_bytes, partial=data.partial)
	log("final", val_loss=val_loss, val_bpb=val_bpb, ms=1e3 * seconds, partial=data.partial)
	log("final_exact", val_loss=val_loss, val_bpb=val_bpb, partial=data.partial)
	log("evaluation", seconds=seconds, limit=EVAL_SECONDS, seq_len=seq_len, stride=stride, ttt=ttt)
	over = agree(trainer, failed=total >= BUDGET_BYTES)[1]
	if not folder:
		if over:
			raise Agreed("over the cap", "over_budget")
		return ""
	if over:
		raise Agreed(f"code {code_bytes:,} + model {len(model):,} = {total:,} bytes, {total - BUDGET_BYTES + 1:,} too many: it must be "
					 f"less than {BUDGET_BYTES:,}. The model is kept in {path}; continue with QUANT_LEVELS=auto, or use fewer layers or a "
					 "smaller width", "over_budget")
	how = f"  scored    windows of {seq_len:,} tokens, every {stride:,}; test-time training: {ttt}; {seconds:.1f} s of {EVAL_SECONDS:.0f}\n"
	return (how * (ttt != "off" or {seq_len, stride} != {settings.train_seq_len}) +
			f"  final     val_bpb {val_bpb:.4f}  val_loss {val_loss:.4f}  read back from the written file{data.partial}\n"
			f"  size      {total:,} bytes = model {len(model):,} + code {code_bytes:,}; {BUDGET_BYTES - 1 - total:,} left under the cap")


# ===== common/run.py
import errno
import importlib
import resource
from importlib import metadata

def main(trainer_class, script):
	rank = int(os.environ.get("RANK") or os.environ.get("MLX_RANK") or 0)
	kind, flags = trainer_class.settings_class, sys.argv[1:]
	if {"--help", "-h"} & set(flags):
		print(settings_help(kind, f"usage: python {Path(script).name} [--preflight] [--setting value ...]"))
		return 0
	interrupt = Interrupt()
	handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
				if signal.getsignal(number) != signal.SIG_IGN}
	flags, preflight = [flag for flag in flags if flag != "--preflight"], "--preflight" in flags
	settings, folder = None, ""

	def warn(text):
		if not rank:
			say(f"warning: {text}", sys.stderr)

	def stored(resume, run_id):
		nonlocal folder
		folder = resume_folder(resume, run_id, trainer_class.backend)
		return stored_settings(folder)

	try:
		with failing_as("bad_settings"):
			settings = dataclasses.replace(load_settings(kind, flags, os.environ, warn, stored), resume=folder)
		if preflight:
			try:
				report = importlib.import_module("common.preflight").report
			except ImportError:
				raise UserError("--preflight is not part of the one-file trainer: use it in the repository") from None
			report(trainer_class, settings, script)
		else:
			run(trainer_class, settings, script, interrupt)
		return 0
	except BaseException as error:
		status, reason, defect = explain(error)
		if rank:
			if not (isinstance(error, (Agreed, KeyboardInterrupt)) or (not settings and not folder) or getattr(error, "told", False)):
				say(f"error: rank {rank}: {reason}", sys.stderr)
		else:
			say(f"error: {reason}", sys.stderr)
			if not getattr(error, "told", False):
				say(log_line("status", status=status, reason=reason, hint=""))
		if defect:
			raise
		return 2
	finally:
		for number, handler in handlers.items():
			signal.signal(number, handler)

def explain(error):
	if isinstance(error, UserError):
		return error.status, str(error), False
	if isinstance(error, KeyboardInterrupt):
		return "interrupted", "interrupted by a signal", False
	if isinstance(error, OSError):
		if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
			return "disk_full", f"{error}: is the disk full? Free some space", False
		return "failed", f"{error}" + ": is the folder yours?" * isinstance(error, PermissionError), False
	words = str(error).lower()
	if isinstance(error, (RuntimeError, MemoryError)) and any(w in words for w in ("out of memory", "allocate")):
		return "failed", f"{str(error).splitlines()[0]}: lower MICRO_BATCH_TOKENS, which never changes the result", False
	return "failed", f"{type(error).__name__}: {error}", True

def run(trainer_class, settings, script, interrupt):
	started = time.perf_counter()
	code = bundle(script)
	with failing_as("bad_data"):
		data = open_data(settings)
	settings = dataclasses.replace(settings, vocab_size=data.tokenizer.vocab_size)
	trainer = trainer_class(settings, initial_weights(settings))
	name = settings.run_id or time.strftime("%Y%m%d-%H%M%S", time.localtime(agree(trainer, time.time())[0]))
	path, identity, damage = Path(settings.resume or f"runs/{name}"), run_identity(settings, data, code), []
	step, elapsed, damaged = together(trainer, lambda: resume(trainer, path, identity, damage.append) if settings.resume else (0, 0.0, []))
	mine = np.array([step, zlib.crc32(repr(sorted(identity.items())).encode())], float)
	if agree(trainer, failed=(trainer.all_sum(mine) != trainer.world_size * mine).any())[1]:
		trainer.close()
		raise Agreed("the ranks do not make the same step of the same run: give all of them the same settings, code, data and folder of the run")
	folder = together(trainer, lambda: RunFolder(path, settings) if trainer.rank == 0 else None)
	log = folder.log if folder else lambda kind, **values: None
	watch = RankWatch(path, trainer.rank, trainer.world_size, settings.rank_timeout)
	watch.steps, saver = step, None
	try:
		together(trainer, watch.hold)
		watch.start()
		for text in damage:
			log("checkpoint_damaged", reason=text)
		if settings.resume:
			log("resume", step=step, ms=1e3 * elapsed, path=path)
		saver = Saver(path, identity, settings.checkpoint_every, log, step, elapsed, damaged) if folder else None
		if folder:
			write_file(path / Path(script).name, code)
			write_json(path / "settings.json", {"backend": trainer.backend, "identity": identity} | dataclasses.asdict(settings))
			describe_run(trainer, settings, data, code, path, log)
		warm_up(trainer, settings, data, watch)
		log("warmup", steps=settings.warmup_steps, seconds=time.perf_counter() - started)
		status, summary = train(trainer, settings, data, log, saver, watch, interrupt, step, elapsed)
		summary += finish(trainer, settings, data, len(code), folder, log, watch)
	except BaseException as error:
		status, reason, _ = explain(error)
		watch.close(status, reason, not isinstance(error, UserError))
		if saver:
			with contextlib.suppress(KeyboardInterrupt):
				saver.collect()
		error.told = folder or watch.thread
		if folder:
			folder.end(status, reason, resume_hint(path), watch.steps)
		if isinstance(error, Agreed):
			trainer.close()
		raise
	watch.close(status, "")
	if folder:
		saver.collect()
		folder.end(status, "the wall-clock cap was reached" if status == "capped" else "all steps were made", "", watch.steps)
		for old in checkpoints(path):
			old.unlink()
		say(f"\n{summary}\n  {path}/ holds the log, the code, the settings and the model")
	trainer.close()
	if folder:
		for file in path.glob("rank*"):
			file.unlink()

def resume(trainer, path, identity, warn):
	names, state = trainer.weights(), trainer.optimizer_state()
	expected = {name: (array.shape, str(array.dtype)) for name, array in (names | state).items()}
	step, elapsed, arrays, damaged = read_checkpoint(path, identity, expected, warn)
	if arrays:
		trainer.load_weights({name: arrays[name] for name in names})
		trainer.load_optimizer_state(arrays)
	return step, elapsed, damaged

def describe_run(trainer, settings, data, code, path, log):
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
	memory, memory_need = trainer.memory()
	log("preflight", free=disk_free(path) >> 20, need=disk_need(settings) >> 20, memory=memory >> 20, memory_need=memory_need >> 20)
	log("batch", tokens=settings.train_batch_tokens, seq_len=settings.train_seq_len, world_size=trainer.world_size,
		micro_rows=micro_batch_rows(settings, rows))

def host_peak_memory():
	return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

def host_memory():
	return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
		self.order, self.num_skips = tuple(layer_order(s)), num_skips(s)
		if self.num_skips:
			self.skip_weights = nn.Parameter(torch.empty(self.num_skips, s.model_dim))
		if not s.tie_embeddings:
			self.lm_head = nn.Linear(s.model_dim, s.vocab_size, bias=False)
		longest = max(s.train_seq_len, s.eval_seq_len)
		self.cos, self.sin = (torch.tensor(t, dtype=wide(dtype), device=device) for t in rope_tables(s, longest))

	def features(self, tokens_BT):
		"""(B, T, C): what the last block gives."""
		cos, sin = self.cos[:tokens_BT.shape[1]], self.sin[:tokens_BT.shape[1]]
		x = x0 = rms_norm(self.tok_emb(tokens_BT).to(self.dtype), self.s)
		skips = []
		for i, layer in enumerate(self.order):
			if i >= self.num_skips and skips:
				x = x + self.skip_weights[i - self.num_skips].to(x.dtype) * skips.pop()
			x = self.blocks[layer](x, x0, cos, sin)
			if i < self.num_skips:
				skips.append(x)
		return x

	def logits(self, tokens_BT):
		"""(B, T, V) in float32, float64 in reference mode."""
		return self.head_logits(self.features(tokens_BT))

	def head_logits(self, x):
		head = self.tok_emb if self.s.tie_embeddings else self.lm_head
		logits = linear(rms_norm(x, self.s), head).to(wide(self.dtype))
		return self.s.logit_softcap * torch.tanh(logits / self.s.logit_softcap)

	def forward(self, tokens):
		"""(B, T) nats of each target: tokens (B, T + 1) hold the inputs and, moved by one, the targets."""
		tokens = tokens.long()
		x, targets = self.features(tokens[:, :-1]), tokens[:, 1:]
		if not 0 < self.s.loss_chunk < targets.numel():
			return self.nats(x, targets).view(len(tokens), -1)
		chunks = zip(x.flatten(0, 1).split(self.s.loss_chunk), targets.flatten().split(self.s.loss_chunk))
		nats = [checkpoint(self.nats, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]  # again in the backward pass
		return torch.cat(nats).view(len(tokens), -1)

	def nats(self, x, targets):
		"""(N,) nats of the N targets (...) after what the last block gives (..., C)."""
		return F.cross_entropy(self.head_logits(x).flatten(0, -2), targets.flatten(), reduction="none")


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
	if q.device.type == "cpu" and T <= 512:
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


def round_rows(w, levels):
	"""float32 (rows, columns) as quantize.py stores and reads it."""
	if levels == "fp16":
		return w.half().float()
	step = (w.abs().amax(dim=1, keepdim=True) / levels).half().float()
	return torch.where(step > 0, w / step, 0.0).round().clamp(-round(levels), round(levels)) * step


class Muon:
	"""Nesterov momentum, then Newton-Schulz, all matrices of one shape in one batched product. Every rank computes every
    update: a few percent of a step, and the weights of all ranks stay equal to the bit."""

	def __init__(self, params, dtype, steps):
		self.dtype, self.steps = dtype, steps
		self.groups = {}
		for name, p in params.items():
			self.groups.setdefault(p.shape, {})[name] = p
		self.momentum = {shape: torch.zeros(len(group), *shape, dtype=p.dtype, device=p.device) for shape, group in self.groups.items()}

	def step(self, lr, momentum, finite):
		"""finite: bool tensor (); where False nothing changes, without a wait for the device to know."""
		for (rows, columns), group in self.groups.items():
			g = torch.stack([p.grad for p in group.values()]).where(finite, 0.0)
			one = finite.to(g.dtype)
			buffer = self.momentum[rows, columns].mul_(one * momentum + (1 - one)).add_(g)
			g.add_(buffer, alpha=momentum)
			g /= g.norm(dim=(1, 2), keepdim=True) + 1e-7
			update = newton_schulz(g.to(self.dtype), self.steps).to(buffer.dtype) * finite
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
		self.average_weights = {n: p.detach().clone() for n, p in self.params.items()} if s.ema_decay else {}
		self.rounding, self.levels = False, tensor_levels(s) if s.qat_start < 1 else {}
		self.running = None  # event at the end of the step before, on CUDA
		self.steps_ahead = int(self.device.type == "cuda")

	# one optimizer step ------------------------------------------------------------

	def train_step(self, tokens, lr_scale, momentum):
		"""One update from this rank's rows (rows, train_seq_len + 1); the mean nats of the global batch (0-dim tensor). From the first
        loss or gradient on that is not finite none is made; a GPU finds that out while the CPU is a step ahead."""
		loss = self.backward(tokens)
		norm = nn.utils.get_total_norm([p.grad for p in self.params.values()])
		self.finite &= torch.isfinite(loss + norm)
		if self.device.type == "mps" and not self.finite:  # its Adam knows no found_inf
			return loss + norm
		if self.s.grad_clip_norm > 0:
			nn.utils.clip_grads_with_norm_(self.params.values(), self.s.grad_clip_norm, norm)
		with torch.no_grad():
			self.muon.step(self.s.matrix_lr * lr_scale, momentum, self.finite)
		for group in self.adam.param_groups:
			group["lr"] = group["base_lr"] * lr_scale
		if self.device.type != "mps":
			self.adam.found_inf = (~self.finite).float()
		self.adam.step()
		if self.device.type == "cuda":  # the CPU waits for the step before: the clock stays honest
			if self.running is not None:
				self.running.synchronize()
			self.running = torch.cuda.Event()
			self.running.record()
		return torch.where(self.finite, loss, loss + norm)

	def backward(self, tokens, alone=False):
		"""Gradients of the global mean loss into .grad, and that loss; alone: of the mean over this rank's rows."""
		tokens, ranks = self.to_device(tokens), 1 if alone else self.world_size
		micro = tokens.split(micro_batch_rows(self.s, len(tokens), tokens.shape[1] - 1))
		scale = 1.0 / (tokens[:, 1:].numel() * ranks)
		total = torch.zeros((), dtype=wide(self.dtype), device=self.device)
		for p in self.params.values():
			p.grad = None
		with self.rounded_weights() if self.rounding else contextlib.nullcontext():
			for i, rows in enumerate(micro):
				last = i == len(micro) - 1 and not alone
				with contextlib.nullcontext() if last or self.world_size == 1 else self.forward.no_sync():
					loss = self.forward(rows).sum() * scale
					(loss * ranks).backward()  # DDP averages over the ranks
				total += loss.detach()
		if self.world_size > 1 and not alone:
			dist.all_reduce(total)
		return total

	@contextlib.contextmanager
	def rounded_weights(self):
		"""Inside, the weights are those that the model file would hold: gradients there are taken for those of the weights themselves (the
        straight-through estimator, Bengio et al., arXiv:1308.3432). Not compiled: Inductor leaves out the rounding to float16."""
		own = {name: self.params[name].detach().clone() for name in self.levels}
		with torch.no_grad():
			for name, levels in self.levels.items():
				self.params[name].copy_(round_rows(own[name].float(), levels))
		try:
			yield
		finally:
			with torch.no_grad():
				for name, w in own.items():
					self.params[name].copy_(w)

	def finite_alone(self, tokens):
		loss = self.backward(tokens, alone=True)
		return all(x.isfinite().all() for x in [loss, *(p.grad for p in self.params.values())])

	def sgd_step(self, tokens, lr):
		"""Plain SGD on the mean nats of rows (rows, T + 1): every parameter moves by -lr times its gradient, on this rank alone."""
		self.backward(tokens, alone=True)
		with torch.no_grad():
			torch._foreach_add_(list(self.params.values()), [p.grad for p in self.params.values()], alpha=-lr)

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

	def to_host(self, tensors):
		"""dict of numpy copies; a GPU sends them together, by way of pinned memory."""
		copies = {name: t.detach().to("cpu", non_blocking=True, copy=True) for name, t in tensors.items()}
		self.wait()
		return {name: t.numpy() for name, t in copies.items()}

	def weights(self):
		return self.to_host(self.params)

	@torch.no_grad()
	def load_weights(self, weights):
		check_weights(self.s, weights)
		self.finite = torch.ones((), dtype=torch.bool, device=self.device)
		for name, p in self.params.items():
			p.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))

	@torch.no_grad()
	def update_average(self, decay):
		"""Moves the average towards the weights by 1 - decay of the way; not where nothing is updated any more."""
		change = torch._foreach_sub(list(self.params.values()), list(self.average_weights.values()))
		torch._foreach_mul_(change, (1 - decay) * self.finite.to(change[0].dtype))
		torch._foreach_add_(list(self.average_weights.values()), change)

	def average(self):
		return self.to_host(self.average_weights)

	def adam_names(self):
		return [name for name in self.params if self.groups[name] != "matrix"]

	def optimizer_state(self):
		"""dict of arrays: NAME.momentum, NAME.exp_avg, NAME.exp_avg_sq, NAME.ema where weights are averaged, and adam_step, the number of
        updates made."""
		state = {f"{name}.momentum": row for shape, group in self.muon.groups.items()
				 for name, row in zip(group, self.muon.momentum[shape])}
		for name in self.adam_names():
			moments = self.adam.state[self.params[name]]
			state |= {f"{name}.{key}": moments[key] for key in ("exp_avg", "exp_avg_sq")} | {"adam_step": moments["step"]}
		return self.to_host(state | {f"{name}.ema": p for name, p in self.average_weights.items()})

	@torch.no_grad()
	def load_optimizer_state(self, state):
		for shape, group in self.muon.groups.items():
			self.muon.momentum[shape].copy_(torch.from_numpy(np.stack([state[f"{name}.momentum"] for name in group])))
		for name in self.adam_names():
			moments = self.adam.state[self.params[name]]
			for key in ("exp_avg", "exp_avg_sq"):
				moments[key].copy_(torch.from_numpy(np.ascontiguousarray(state[f"{name}.{key}"])))
			moments["step"].fill_(float(state["adam_step"]))
		for name, p in self.average_weights.items():
			p.copy_(torch.from_numpy(np.ascontiguousarray(state[f"{name}.ema"])))

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

	def memory(self):
		"""Bytes that are free on the GPU, or that the machine has, and that training will take, roughly."""
		rows = micro_batch_rows(self.s, rank_rows(self.s, self.rank, self.world_size)[1])
		have = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else host_memory()
		score_rows = self.s.train_seq_len if self.device.type == "cpu" and self.s.train_seq_len <= 512 else 0
		return have, training_bytes(self.s, rows, self.dtype.itemsize, score_rows)

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
