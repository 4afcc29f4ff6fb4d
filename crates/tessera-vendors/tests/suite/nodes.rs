//! Other pictures of a row's node: what a device plugin may write next.

use serde_json::{Value, json};

use super::table::{Memory, Picture, Row};

/// The register's key, and whether the node has one.
pub(crate) fn register_key(row: &Row) -> Option<String> {
    let (annotations, _) = (row.node)();
    annotations.as_object().and_then(|map| map.keys().next_back().cloned())
}

/// The picture with its register's text changed.
fn with_text(row: &Row, change: impl Fn(&str) -> String) -> Picture {
    let (mut annotations, amounts) = (row.node)();
    if let Some(key) = register_key(row) {
        let text = annotations[&key].as_str().map(change);
        annotations[&key] = json!(text);
    }
    (annotations, amounts)
}

/// The first place where the register says `there` says `then`.
pub(crate) fn edited(row: &Row, (there, then): (&str, &str)) -> Picture {
    with_text(row, |text| {
        assert!(text.contains(there), "{}: no {there} in {text}", row.title);
        text.replacen(there, then, 1)
    })
}

/// The first card does not work.
pub(crate) fn broken(row: &Row) -> Picture {
    edited(row, row.breaks.expect("the row says what a broken card looks like"))
}

/// The last card is gone.
pub(crate) fn fewer(row: &Row) -> Picture {
    let (annotations, amounts) = with_text(row, |text| match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(mut cards)) => {
            cards.pop();
            json!(cards).to_string()
        }
        Ok(mut of_slices) => {
            of_slices["devices"].as_array_mut().unwrap().pop();
            of_slices.to_string()
        }
        Err(_) => {
            let mut cards: Vec<&str> = text.split_terminator(':').collect();
            cards.pop();
            format!("{}:", cards.join(":"))
        }
    });
    let less = |amount: u64| amount / row.cards as u64 * (row.cards as u64 - 1);
    (annotations, scaled(&amounts, |_| true, less))
}

fn scaled(amounts: &Value, which: impl Fn(&str) -> bool, scale: impl Fn(u64) -> u64) -> Value {
    let mut amounts = amounts.clone();
    for (name, amount) in amounts.as_object_mut().unwrap() {
        if which(name) {
            let old: u64 = amount.as_str().unwrap().parse().unwrap();
            *amount = json!(scale(old).to_string());
        }
    }
    amounts
}

/// The memory of the first `cards` cards is another: of all cards, where the node states a sum.
pub(crate) fn resized(row: &Row, cards: usize, scale: impl Fn(u64) -> u64) -> Picture {
    match row.size.expect("the row says where the memory stands") {
        Memory::Amount(name) => {
            let (annotations, amounts) = (row.node)();
            (annotations, scaled(&amounts, |known| known == name, scale))
        }
        Memory::Member(member) => with_text(row, |text| {
            let mut list: Value = serde_json::from_str(text).unwrap();
            for card in list.as_array_mut().unwrap().iter_mut().take(cards) {
                card[member] = json!(scale(card[member].as_u64().unwrap()));
            }
            list.to_string()
        }),
        Memory::Field => with_text(row, |text| {
            let card = |(at, card): (usize, &str)| {
                let mut fields: Vec<String> = card.split(',').map(str::to_owned).collect();
                if at < cards {
                    fields[2] = scale(fields[2].parse().unwrap()).to_string();
                }
                fields.join(",") + ":"
            };
            text.split_terminator(':').enumerate().map(card).collect()
        }),
    }
}

/// Each card lies on a NUMA node of its own.
pub(crate) fn apart(row: &Row) -> Picture {
    with_text(row, |text| {
        let mut list: Value = serde_json::from_str(text).unwrap();
        for (at, card) in list.as_array_mut().unwrap().iter_mut().enumerate() {
            card["numa"] = json!(at);
        }
        list.to_string()
    })
}
