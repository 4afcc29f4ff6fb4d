#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::{CardRule, RULE_BYTES_MAX, RULE_DEPTH_MAX};
use crate::{Card, CardId, CardMode, Cores, Extras, Keyword, Mib};

fn card() -> Card {
    Card {
        id: CardId::new("GPU-a").unwrap(),
        class: Keyword::new("NVIDIA").unwrap(),
        index: 3,
        slots: 10,
        memory: Mib::new(40 << 10),
        cores: Cores::new(100),
        extra: Extras::NONE,
        model: Arc::from("NVIDIA A100-PCIE-40GB"),
        numa: -1,
        mode: CardMode::default(),
        healthy: true,
        mig_profiles: Vec::new(),
        link_scores: BTreeMap::from([(CardId::new("GPU-b").unwrap(), 10), (CardId::new("GPU-c").unwrap(), 0)]),
        twin: None,
        custom: BTreeMap::from([
            ("driver".to_owned(), "xe".to_owned()),
            ("FirmWare".to_owned(), "2".to_owned()),
        ]),
    }
}

#[test]
fn a_rule_means_what_it_says() {
    for (rule, accepted) in [
        ("model.contains('a100')", true),
        ("model.contains(\"A100\") && memory >= 40Gi", true),
        ("memory > 40Gi", false),
        ("memory < 41G || vendor == 'DCU'", false),
        ("memory == 40960Mi", true),
        ("vendor == 'nvidia'", true),
        ("vendor in ['DCU', 'MLU']", false),
        ("index in [1, 3]", true),
        ("!(index in [1, 3])", false),
        ("!!(numa == -1)", true),
        ("numa >= 0", false),
        ("links >= 1 && links < 2", true),
        ("slots == 10 && cores <= 100", true),
        ("custom[\"driver\"] == 'xe'", true),
        ("custom['DRIVER'] == 'XE'", true),
        ("custom['Firmware'] == '2'", true),
        ("custom['absent'] == ''", true),
        ("id.startsWith('GPU-') && !id.endsWith('b')", true),
        ("mode != 'mig'", true),
        // `&&` binds closer.
        ("index == 3 || index == 4 && memory < 1", true),
        ("(index == 3 || index == 4) && memory < 1", false),
        ("'A100' != model", true),
    ] {
        let read = CardRule::parse(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        assert_eq!(read.accepts(&card()), accepted, "{rule}");
        assert_eq!(read.as_str(), rule);
    }
}

#[test]
fn a_wrong_rule_says_where_and_what() {
    for (rule, column, part) in [
        ("", 1, "not the end"),
        (
            "modle == 'A100'",
            1,
            "`modle` is no attribute of a card; there are vendor, model",
        ),
        ("memory >= '40Gi'", 11, "without quotes"),
        ("model == 40", 10, "in quotes"),
        ("model == 'A100", 10, "not closed"),
        ("memory >= 40GB", 13, "`GB` is no unit"),
        ("memory >= 99999999999999999999999999Ti", 11, "too large"),
        ("memory", 7, "a comparison"),
        ("memory = 4", 8, "`=` has no meaning"),
        ("memory >= 4 memory", 13, "`&&`, `||` or the end is expected"),
        ("(memory >= 4", 13, "`)` is expected, not the end"),
        ("model.matches('x')", 7, "contains, startsWith or endsWith"),
        ("memory.contains('4')", 7, "only a text"),
        ("index in []", 11, "not `]`"),
        ("index in [1, 'a']", 14, "without quotes"),
        ("custom[driver] == 'xe'", 8, "in quotes"),
        ("numa == - 'a'", 11, "a number is expected"),
        ("größe > 1", 3, "`ö` has no meaning"),
    ] {
        let error = CardRule::parse(rule).expect_err(rule);
        assert_eq!(error.column, column, "{rule}: {error}");
        assert!(error.problem.contains(part), "{rule}: {error}");
    }
}

#[test]
fn a_rule_is_bounded() {
    let deep = |depth: usize| format!("{}index == 3{}", "(".repeat(depth), ")".repeat(depth));
    assert!(CardRule::parse(&deep(RULE_DEPTH_MAX - 1)).is_ok());
    assert!(CardRule::parse(&deep(RULE_DEPTH_MAX)).is_err());
    assert!(CardRule::parse(&format!("{}index == 3", "!".repeat(RULE_DEPTH_MAX))).is_err());
    let long = format!("model == '{}'", "x".repeat(RULE_BYTES_MAX));
    assert!(CardRule::parse(&long).is_err());
}

#[test]
fn a_rule_is_recorded_as_its_text() {
    let rule = CardRule::parse("memory >= 40Gi").unwrap();
    let text = serde_json::to_string(&rule).unwrap();
    assert_eq!(text, "\"memory >= 40Gi\"");
    assert_eq!(serde_json::from_str::<CardRule>(&text).unwrap(), rule);
    assert!(serde_json::from_str::<CardRule>("\"memory >\"").is_err());
}

fn rules() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("model.contains('a100')".to_owned()),
        Just("memory >= 40Gi".to_owned()),
        Just("index in [1, 2]".to_owned()),
        Just("vendor == 'DCU'".to_owned()),
    ];
    part.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| format!("({})", parts.join(" && "))),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| format!("({})", parts.join(" || "))),
            inner.prop_map(|part| format!("!({part})")),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_inside_it(text in ".{0,80}") {
        if let Err(error) = CardRule::parse(&text) {
            prop_assert!(error.column >= 1 && error.column <= text.chars().count() + 1);
        }
    }

    #[test]
    fn pieces_of_rules_never_panic(parts in prop::collection::vec(
        prop::sample::select(vec!["(", ")", "!", "&&", "||", "==", "in", "[", "]", ",", ".", "-", "memory", "model",
            "custom", "contains", "'a'", "4", "4Gi", " "]), 0..24)) {
        if let Ok(rule) = CardRule::parse(&parts.join(" ")) {
            prop_assert_eq!(rule.accepts(&card()), rule.accepts(&card()));
        }
    }

    #[test]
    fn a_negation_says_the_opposite(rule in rules()) {
        let (plain, negated) = (CardRule::parse(&rule), CardRule::parse(&format!("!({rule})")));
        prop_assume!(plain.is_ok() && negated.is_ok());
        prop_assert_ne!(plain.unwrap().accepts(&card()), negated.unwrap().accepts(&card()));
    }
}
