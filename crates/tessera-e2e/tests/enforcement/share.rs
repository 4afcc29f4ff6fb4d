//! From the variables of a case to a grant, which is what decides here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tessera_region::{CardFlags, CardGrant};

/// What a container is given.
#[derive(Clone, Debug)]
pub(crate) enum Share {
    /// These cards, by their places on the machine.
    Cards(Vec<(usize, CardGrant)>),
    /// No grant at all: nobody asked for a card, or the text that asks cannot be read.
    Nothing,
    /// A grant whose checksum does not match.
    Damaged,
}

impl Share {
    /// Says what one context takes, so that nobody has to find out.
    pub(crate) fn state_context(&mut self, bytes: u64) {
        if let Self::Cards(cards) = self {
            for (_, card) in cards {
                card.context_bytes = bytes;
            }
        }
    }
}

/// The share that a case states itself: `memory` and `core` by card.
pub(crate) fn stated(grant: &Map<String, Value>, uuids: &[String]) -> Share {
    if grant.get("damaged") == Some(&Value::Bool(true)) {
        return Share::Damaged;
    }
    let Some(memory) = grant.get("memory").and_then(Value::as_array) else {
        return Share::Nothing;
    };
    let cores = grant.get("core").and_then(Value::as_array);
    let cards = memory.iter().zip(uuids).enumerate().map(|(n, (memory, uuid))| {
        let core = cores.and_then(|list| list.get(n)).and_then(Value::as_u64);
        let card = CardGrant {
            cores_permille: core.map_or(1000, |core| u32::try_from(core).expect("at most 1000")),
            ..counted(
                uuid,
                super::arguments::size(memory.as_str().expect("a size")).expect("a size"),
            )
        };
        (n, card)
    });
    Share::Cards(cards.collect())
}

/// The share that variables ask for.
///
/// A text that is no plain number with an optional unit gets nothing. Without any variable the pod asked for whole
/// cards, unless the case is about the variable itself.
pub(crate) fn asked(env: &BTreeMap<String, String>, uuids: &[String], about_variables: bool) -> Share {
    let asks = env.keys().any(|name| name.starts_with("CUDA_DEVICE_MEMORY_LIMIT"));
    if !asks && about_variables {
        return Share::Nothing;
    }
    let Some(priority) = env.get("CUDA_TASK_PRIORITY").map_or(Some(1), |text| plain(text)) else {
        return Share::Nothing;
    };
    let Some(priority) = u8::try_from(priority).ok() else {
        return Share::Nothing;
    };
    let mut cards = Vec::new();
    for (n, uuid) in uuids.iter().enumerate() {
        let own = |name: &str| env.get(&format!("{name}_{n}")).filter(|text| *text != "0");
        let memory = own("CUDA_DEVICE_MEMORY_LIMIT").or_else(|| env.get("CUDA_DEVICE_MEMORY_LIMIT"));
        let cores_text = own("CUDA_DEVICE_SM_LIMIT").or_else(|| env.get("CUDA_DEVICE_SM_LIMIT"));
        let cores = match cores_text.map(|text| plain(text)) {
            None => 100,
            Some(Some(percent @ 1..=100)) => percent,
            // More than a card, nothing of it, or no number.
            Some(_) => return Share::Nothing,
        };
        let card = match memory.map(|text| limit(text)) {
            Some(Some(bytes)) => counted(uuid, bytes),
            Some(None) => return Share::Nothing,
            None if asks && cores_text.is_none() => continue,
            None => CardGrant::unlimited(uuid).expect("a UUID"),
        };
        let cores_permille = u32::try_from(cores * 10).expect("at most 1000");
        cards.push((
            n,
            CardGrant {
                cores_permille,
                priority,
                ..card
            },
        ));
    }
    Share::Cards(cards)
}

/// The reference counts contexts against the limit.
fn counted(uuid: &str, bytes: u64) -> CardGrant {
    CardGrant {
        flags: CardFlags::COUNT_CONTEXT,
        ..CardGrant::with_memory(uuid, bytes).expect("a UUID")
    }
}

fn plain(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Bytes of a limit: decimal or `0x`, then `g`, `m` or `k` of either case or nothing. Nothing for any other text, for
/// zero, and for more than can be counted.
fn limit(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().filter(|bytes| *bytes > 0);
    }
    let (digits, unit) = match text.as_bytes().last()? {
        b'g' | b'G' => (&text[..text.len() - 1], 1 << 30),
        b'm' | b'M' => (&text[..text.len() - 1], 1 << 20),
        b'k' | b'K' => (&text[..text.len() - 1], 1 << 10),
        _ => (text, 1_u64),
    };
    plain(digits)?.checked_mul(unit).filter(|bytes| *bytes > 0)
}

#[test]
fn a_limit_is_a_plain_number_with_a_unit() {
    for (text, bytes) in [
        ("1g", Some(1 << 30)),
        ("1048576k", Some(1 << 30)),
        ("0x40000000", Some(1 << 30)),
        ("010m", Some(10 << 20)),
        ("4096", Some(4096)),
    ] {
        assert_eq!(limit(text), bytes, "{text}");
    }
    for text in [
        "",
        "g",
        "0",
        "0m",
        "-1",
        "1.5g",
        "1gb",
        " 512m",
        "512m ",
        "17179869184g",
        "99999999999999999999",
    ] {
        assert_eq!(limit(text), None, "{text}");
    }
}
