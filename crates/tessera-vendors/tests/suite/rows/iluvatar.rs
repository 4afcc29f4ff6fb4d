//! Iluvatar: one class a chip.

use serde_json::json;

use super::super::table::*;

/// Cards of one Iluvatar chip.
fn ix(word: &str) -> Picture {
    let text = format!("ix-0,8,32768,100,{word},0,true,0,hami-core:ix-1,8,32768,100,{word},1,true,1,hami-core:");
    (json!({format!("hami.io/node-{word}-register"): text}), json!({}))
}

/// One Iluvatar chip.
macro_rules! ix {
    ($word:literal, $title:literal) => {
        Row {
            class: $word,
            title: $title,
            node: || ix($word),
            whole: &[
                (concat!("iluvatar.ai/", $word, "-vgpu"), "1"),
                (concat!("iluvatar.ai/", $word, ".vCore"), "100"),
            ],
            part: Some(&[
                (concat!("iluvatar.ai/", $word, "-vgpu"), "1"),
                (concat!("iluvatar.ai/", $word, ".vMem"), "64"),
                (concat!("iluvatar.ai/", $word, ".vCore"), "50"),
            ]),
            memory: Some(&[
                (concat!("iluvatar.ai/", $word, "-vgpu"), "1"),
                (concat!("iluvatar.ai/", $word, ".vMem"), "64"),
                (concat!("iluvatar.ai/", $word, ".vCore"), "1"),
            ]),
            compute: Some(&[
                (concat!("iluvatar.ai/", $word, "-vgpu"), "1"),
                (concat!("iluvatar.ai/", $word, ".vMem"), "1"),
                (concat!("iluvatar.ai/", $word, ".vCore"), "50"),
            ]),
            least: Some((
                &[
                    (concat!("iluvatar.ai/", $word, "-vgpu"), "1"),
                    (concat!("iluvatar.ai/", $word, ".vMem"), "1"),
                    (concat!("iluvatar.ai/", $word, ".vCore"), "1"),
                ],
                8,
            )),
            pair: Some(&[(concat!("iluvatar.ai/", $word, "-vgpu"), "2")]),
            ids: Some((
                concat!("hami.io/use-", $word, "-uuid"),
                concat!("hami.io/no-use-", $word, "-uuid"),
            )),
            breaks: Some((",0,true,0,", ",0,false,0,")),
            size: Some(Memory::Field),
            cannot: &[
                (&["models", "no-models"], BY_NAME),
                (&["percent"], NO_PERCENT),
                (&["numa"], NO_NUMA),
                (&["links"], NO_LINKS),
                (&["disagree"], NO_TABLE),
            ],
            ..BASE
        }
    };
}

pub(super) const ILUVATAR_BI_V150: Row = ix!("BI-V150", "Iluvatar BI-V150");

pub(super) const ILUVATAR_BI_V150S: Row = ix!("BI-V150S", "Iluvatar BI-V150S");

pub(super) const ILUVATAR_MR_V100: Row = ix!("MR-V100", "Iluvatar MR-V100");
