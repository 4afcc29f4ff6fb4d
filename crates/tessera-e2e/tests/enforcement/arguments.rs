//! From the arguments of a case to those of `cuda-client`.
//!
//! A simulated driver that is nearer to the real one asks for more than the reference's did: a kernel that was loaded, a
//! stream that was made, a kind in every structure. Those are filled in here.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::actor::Actor;

/// A variable before a call writes it.
const UNWRITTEN: u64 = 0x5a5a_5a5a_5a5a_5a5a;
/// The kernel and the stream that cases name by number.
const KERNEL: u64 = 3840;
const STREAM: u64 = 16;
/// A handle from elsewhere, as cases name it.
const FOREIGN: u64 = 512;

/// A call as the client takes it, and what it may have written.
pub(crate) struct Prepared {
    pub(crate) text: String,
    variables: Vec<String>,
    structures: Vec<(String, Layout, String)>,
}

/// Name, offset and size of each field.
type Layout = &'static [(&'static str, usize, usize)];

/// Size and fields of a structure of the vendor's headers.
fn layout(name: &str) -> (usize, Layout) {
    match name {
        "CUmemAllocationProp" => (32, &[("type", 0, 4), ("locationType", 8, 4), ("locationId", 12, 4)]),
        "CUmemPoolProps" => (88, &[("type", 0, 4), ("locationType", 8, 4), ("locationId", 12, 4)]),
        "CUDA_ARRAY_DESCRIPTOR" => (
            24,
            &[
                ("Width", 0, 8),
                ("Height", 8, 8),
                ("Format", 16, 4),
                ("NumChannels", 20, 4),
            ],
        ),
        "CUDA_ARRAY3D_DESCRIPTOR" => (
            40,
            &[
                ("Width", 0, 8),
                ("Height", 8, 8),
                ("Depth", 16, 8),
                ("Format", 24, 4),
                ("NumChannels", 28, 4),
            ],
        ),
        "CUDA_EXTERNAL_MEMORY_HANDLE_DESC" => (104, &[("type", 0, 4), ("fd", 8, 4), ("size", 24, 8)]),
        "CUDA_EXTERNAL_MEMORY_BUFFER_DESC" => (88, &[("offset", 0, 8), ("size", 8, 8)]),
        "CUmulticastObjectProp" => (32, &[("numDevices", 0, 4), ("size", 8, 8)]),
        "CUDA_MEM_ALLOC_NODE_PARAMS" => (
            120,
            &[
                ("type", 0, 4),
                ("locationType", 8, 4),
                ("bytesize", 104, 8),
                ("dptr", 112, 8),
            ],
        ),
        "CUDA_KERNEL_NODE_PARAMS_v2" => (
            72,
            &[
                ("func", 0, 8),
                ("gridX", 8, 4),
                ("gridY", 12, 4),
                ("gridZ", 16, 4),
                ("blockX", 20, 4),
                ("blockY", 24, 4),
                ("blockZ", 28, 4),
            ],
        ),
        "CUlaunchConfig" => (
            56,
            &[
                ("gridX", 0, 4),
                ("gridY", 4, 4),
                ("gridZ", 8, 4),
                ("blockX", 12, 4),
                ("blockY", 16, 4),
                ("blockZ", 20, 4),
            ],
        ),
        "nvmlMemory_t" => (24, &[("total", 0, 8), ("free", 8, 8), ("used", 16, 8)]),
        "nvmlMemory_v2_t" => (
            40,
            &[
                ("version", 0, 4),
                ("total", 8, 8),
                ("reserved", 16, 8),
                ("free", 24, 8),
                ("used", 32, 8),
            ],
        ),
        "u64" | "u64v" => (8, &[("v", 0, 8)]),
        "u32s" => (16, &[("v", 0, 4)]),
        "plist" => (240, &[("pid0", 0, 4), ("memory0", 8, 8), ("pid1", 24, 4)]),
        "bytes" => (256, &[]),
        other => panic!("structure {other}"),
    }
}

/// Fields that the vendor asks for and cases leave out.
fn needed(name: &str) -> &'static [(&'static str, u64)] {
    match name {
        "CUmemAllocationProp" | "CUmemPoolProps" => &[("type", 1)],
        "CUDA_MEM_ALLOC_NODE_PARAMS" => &[("type", 1), ("locationType", 1)],
        "CUDA_KERNEL_NODE_PARAMS_v2" | "CUlaunchConfig" => {
            &[("gridY", 1), ("gridZ", 1), ("blockX", 1), ("blockY", 1), ("blockZ", 1)]
        }
        "CUDA_EXTERNAL_MEMORY_HANDLE_DESC" => &[("type", 1)],
        "nvmlMemory_v2_t" => &[("version", 0x0200_0028)],
        _ => &[],
    }
}

/// `700MiB`, `724MiB-1000`, `0x40`, as a number.
pub(crate) fn size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (sum, plus) = match text.rfind(['+', '-']) {
        Some(at) => (&text[..at], Some((&text[at..=at], &text[at + 1..]))),
        None => (text, None),
    };
    let digits = sum.find(|c: char| !c.is_ascii_digit()).unwrap_or(sum.len());
    let unit = match &sum[digits..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1_u64 << 40,
        _ => return None,
    };
    let value = sum[..digits].parse::<u64>().ok()?.checked_mul(unit)?;
    match plus {
        None => Some(value),
        Some(("+", more)) => value.checked_add(size(more)?),
        Some((_, less)) => value.checked_sub(size(less)?),
    }
}

/// Where a launch has its kernel.
fn kernel_place(call: &str) -> Option<usize> {
    match call {
        "cuLaunchKernelEx" | "cuLaunchKernelEx_ptsz" => Some(1),
        _ if call.starts_with("cuLaunch") => Some(0),
        _ => None,
    }
}

/// Loads the kernel `$fn`; false where the driver does not let it.
fn load_kernel(actor: &mut Actor) -> bool {
    if !actor.has_kernel {
        let image = b"kernel k 0 0\n";
        let block = actor.block(24);
        for (n, part) in image.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            actor.tell(&format!("@set {block} {} 8 {}", n * 8, u64::from_le_bytes(word)));
        }
        let loaded = actor.tell(&format!("cuModuleLoadData &module *{block}"));
        let found = actor.tell("cuModuleGetFunction &fn $module \"k");
        actor.has_kernel = [loaded, found]
            .iter()
            .all(|answer| answer.as_ref().is_some_and(|text| text.starts_with("0 ")));
    }
    actor.has_kernel
}

/// A description of part of the card, from which a green context is made.
fn resource(actor: &mut Actor) -> String {
    let block = actor.block(144);
    actor.tell(&format!("cuDeviceGetDevResource 0 *{block} 1"));
    actor.tell(&format!("cuDevResourceGenerateDesc &part *{block} 1"));
    "$part".to_owned()
}

pub(crate) fn prepare(actor: &mut Actor, call: &str, args: &[Value]) -> Prepared {
    let mut prepared = Prepared {
        text: call.to_owned(),
        variables: Vec::new(),
        structures: Vec::new(),
    };
    for (place, arg) in args.iter().enumerate() {
        let text = match arg {
            Value::Null if call == "cuGreenCtxCreate" => resource(actor),
            Value::Null => "null".to_owned(),
            Value::Object(object) => structure(actor, &mut prepared, object),
            Value::String(text) => string(actor, &mut prepared, text),
            Value::Number(number) if number.as_u64() == Some(KERNEL) && kernel_place(call) == Some(place) => {
                if load_kernel(actor) { "$fn" } else { "3840" }.to_owned()
            }
            Value::Number(number) if number.as_u64() == Some(STREAM) && takes_stream(call, place) => {
                if !actor.has_stream {
                    actor.has_stream = actor.tell("cuStreamCreate &stream 0").is_some();
                }
                "$stream".to_owned()
            }
            Value::Number(number) if number.as_u64() == Some(FOREIGN) && call == "cuMemImportFromShareableHandle" => {
                "$foreign".to_owned()
            }
            Value::Number(number) => number.to_string(),
            other => panic!("argument {other}"),
        };
        prepared.text.push(' ');
        prepared.text.push_str(&text);
    }
    prepared
}

fn takes_stream(call: &str, place: usize) -> bool {
    (call.starts_with("cuStream") && place == 0) || (call == "cuMemAllocAsync" && place == 2)
}

fn string(actor: &mut Actor, prepared: &mut Prepared, text: &str) -> String {
    if let Some(name) = text.strip_prefix('&') {
        actor.tell(&format!("@var {name} {UNWRITTEN}"));
        prepared.variables.push(name.to_owned());
        return text.to_owned();
    }
    if text.starts_with('$') {
        return text.to_owned();
    }
    if let Some(text) = text.strip_prefix("str:") {
        return format!("\"{text}");
    }
    if let Some(names) = text.strip_prefix("ptrs:") {
        let names: Vec<&str> = names.split(',').collect();
        let block = actor.block(names.len() * 8);
        for (n, name) in names.iter().enumerate() {
            actor.tell(&format!("@var {name} {UNWRITTEN}"));
            actor.tell(&format!("@set {block} {} 8 @{name}", n * 8));
            prepared.structures.push((format!("={name}"), &[], (*name).to_owned()));
        }
        return format!("*{block}");
    }
    size(text).unwrap_or_else(|| panic!("argument {text}")).to_string()
}

fn structure(actor: &mut Actor, prepared: &mut Prepared, object: &Map<String, Value>) -> String {
    let (name, given) = object.iter().find(|(name, _)| *name != "out").expect("a structure");
    let (bytes, fields) = layout(name);
    let block = actor.block(bytes);
    let mut set = |field: &str, value: &str| {
        if let Some((_, at, size)) = fields.iter().find(|(known, ..)| *known == field) {
            actor.tell(&format!("@set {block} {at} {size} {value}"));
        }
    };
    for (field, value) in needed(name) {
        set(field, &value.to_string());
    }
    for (field, value) in given.as_object().expect("fields") {
        let value = match value {
            Value::Array(list) => list.first().expect("one value").to_string(),
            Value::String(text) => size(text).unwrap_or_else(|| panic!("{field}: {text}")).to_string(),
            value => value.to_string(),
        };
        set(field, &value);
    }
    if name == "CUDA_EXTERNAL_MEMORY_HANDLE_DESC" {
        // A file of the size that is imported stands for the memory of another interface.
        actor.tell("@open outside /dev/zero");
        actor.tell(&format!("@set {block} 8 4 $outside"));
    }
    if name.starts_with("CUDA_KERNEL_NODE") && load_kernel(actor) {
        actor.tell(&format!("@set {block} 0 8 $fn"));
    }
    if let Some(out) = object.get("out").and_then(Value::as_str) {
        prepared.structures.push((block.clone(), fields, out.to_owned()));
        if name == "bytes" {
            // So that it can be passed on by value.
            prepared.structures.push((format!("*{block}"), &[], out.to_owned()));
        }
    }
    format!("*{block}")
}

/// The answer to a call: `ret`, and what was written, by name.
pub(crate) fn answer(actor: &mut Actor, prepared: &Prepared, line: &str) -> Map<String, Value> {
    let mut words = line.split(' ');
    let code = words.next().and_then(|code| code.parse::<i64>().ok());
    let mut answer = Map::new();
    answer.insert("ret".to_owned(), code.map_or_else(|| Value::from(line), Value::from));
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        if prepared.variables.iter().any(|known| known == name) {
            answer.insert(name.to_owned(), written(value));
        }
    }
    for (block, fields, out) in &prepared.structures {
        if block.starts_with('=') {
            let probe = actor.block(8);
            actor.tell(&format!("@set {probe} 0 8 ${out}"));
            let value = actor.tell(&format!("@get {probe} 0 8")).unwrap_or_default();
            answer.insert(out.clone(), written(&value));
        }
        for (field, at, size) in *fields {
            let value = actor.tell(&format!("@get {block} {at} {size}"));
            let value = value.and_then(|text| text.parse::<u64>().ok());
            answer.insert(format!("{out}.{field}"), value.map_or(Value::Null, Value::from));
        }
    }
    answer
}

/// A variable of eight bytes, of which a call may write four.
fn written(text: &str) -> Value {
    let Ok(value) = text.parse::<u64>() else {
        return Value::from(text);
    };
    if value == UNWRITTEN {
        return Value::from("unwritten");
    }
    if value >> 32 == UNWRITTEN >> 32 {
        return Value::from(value & u64::from(u32::MAX));
    }
    Value::from(value)
}

/// Blocks by the name under which a case passes them by value.
pub(crate) fn blocks(prepared: &Prepared) -> impl Iterator<Item = (&str, &str)> {
    prepared
        .structures
        .iter()
        .filter_map(|(block, _, out)| Some((out.as_str(), block.strip_prefix('*')?)))
}

/// How long a step may take.
pub(crate) fn wait(wait_s: Option<f64>) -> Duration {
    // A wait that ends a step on purpose is kept; others are only there to tell "at once" from "never".
    Duration::from_secs_f64(wait_s.unwrap_or(20.0))
}
