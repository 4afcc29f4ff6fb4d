//! Checks of the `vnpus` section that its types cannot make.

use tessera_types::Keyword;

use super::{Ascend, AscendChip, ConfigError};

/// The most memory taken for a chip's, MiB.
const MEMORY_MAX: i64 = 2_147_483_647;

impl Ascend {
    /// Checks what the types cannot. `file` is the text for finding the line.
    pub(super) fn check(&self, file: &str) -> Result<(), ConfigError> {
        let at = |key: &str, text: String| Err(ConfigError::at_key(file, Some("vnpus"), key, text));
        let mut words: Vec<&str> = Vec::new();
        let mut resources: Vec<&str> = Vec::new();
        for chip in &self.configs {
            let word = chip.common_word.as_str();
            if let Err(error) = Keyword::new(word) {
                return at("commonWord", format!("{error}; write a word such as Ascend910B3"));
            }
            if words.contains(&word) {
                return at(
                    "commonWord",
                    format!("`{word}` is listed twice; keep one of the two chips"),
                );
            }
            words.push(word);
            let names = [
                ("resourceName", &chip.resource_name),
                ("resourceMemoryName", &chip.resource_memory_name),
                ("resourceCoreName", &chip.resource_core_name),
            ];
            for (key, name) in names.into_iter().filter(|(_, name)| !name.is_empty()) {
                if resources.contains(&name.as_str()) {
                    let text = format!("`{name}` stands for two things; each resource needs a name of its own");
                    return at(key, text);
                }
                resources.push(name);
            }
            if !chip.resource_name.is_empty() {
                chip.check_sizes().or_else(|(key, text)| at(key, text))?;
            }
        }
        Ok(())
    }
}

impl AscendChip {
    /// Key and fault.
    fn check_sizes(&self) -> Result<(), (&'static str, String)> {
        let word = &self.common_word;
        for (key, value, least) in [
            ("memoryAllocatable", self.memory_allocatable, 1),
            ("memoryCapacity", self.memory_capacity, 0),
            ("memoryFactor", i64::from(self.memory_factor), 0),
            ("aiCore", i64::from(self.ai_core), 0),
            ("aiCPU", i64::from(self.ai_cpu), 0),
        ] {
            if !(least..=MEMORY_MAX).contains(&value) {
                return Err((
                    key,
                    format!("`{key}` of {word} is {value}; write a number of {least} or more"),
                ));
            }
        }
        let mut names: Vec<&str> = Vec::new();
        for template in &self.templates {
            let name = template.name.as_str();
            if name.is_empty() || names.contains(&name) {
                let text = format!("template `{name}` of {word} has no name, or the name of another");
                return Err(("templates", text));
            }
            names.push(name);
            for (key, value, least, most) in [
                ("memory", template.memory, 1, self.memory_allocatable),
                ("aiCore", i64::from(template.ai_core), 0, i64::from(self.ai_core)),
                ("aiCPU", i64::from(template.ai_cpu), 0, i64::from(self.ai_cpu)),
            ] {
                // The chip's own number may be left out, and then limits nothing.
                let most = if most == 0 { MEMORY_MAX } else { most };
                if !(least..=most).contains(&value) {
                    let text =
                        format!("`{key}` of template `{name}` of {word} is {value}; it must be {least} to {most}");
                    return Err(("templates", text));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::DeviceConfig;

    fn problem(chips: &str) -> String {
        let text = format!("vnpus:\n  configs:\n{chips}");
        DeviceConfig::from_yaml(&text).unwrap_err().to_string()
    }

    #[test]
    fn a_table_that_cannot_be_right_is_refused_by_chip_and_key() {
        let chip = "  - commonWord: A1\n    resourceName: huawei.com/A1\n    memoryAllocatable: 100\n    aiCore: 8\n";
        assert!(DeviceConfig::from_yaml(&format!("vnpus:\n  configs:\n{chip}")).is_ok());
        for (chips, part) in [
            (format!("{chip}{chip}"), "`A1` is listed twice"),
            (
                "  - commonWord: \"A,1\"\n".to_owned(),
                "line 3, column 5: vendor keyword",
            ),
            ("  - chipName: x\n".to_owned(), "an empty vendor keyword"),
            (
                "  - commonWord: A1\n    resourceName: a\n".to_owned(),
                "`memoryAllocatable` of A1 is 0",
            ),
            (
                format!("{chip}    resourceMemoryName: huawei.com/A1\n"),
                "stands for two things",
            ),
            (
                format!("{chip}    templates:\n    - {{name: t, memory: 200}}\n"),
                "it must be 1 to 100",
            ),
            (
                format!("{chip}    templates:\n    - {{name: t, memory: 10, aiCore: 9}}\n"),
                "it must be 0 to 8",
            ),
            (format!("{chip}    templates:\n    - {{memory: 10}}\n"), "has no name"),
        ] {
            let problem = problem(&chips);
            assert!(problem.contains(part), "{problem}");
        }
    }
}
