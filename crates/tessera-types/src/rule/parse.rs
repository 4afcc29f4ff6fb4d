//! From text to a rule.

use super::{
    CardRule, Method, Node, NumberAttribute, RULE_BYTES_MAX, RULE_DEPTH_MAX, Relation, RuleError, TextAttribute, Value,
};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Number(i128),
    Sign(&'static str),
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Word(word) => format!("`{word}`"),
            Self::Text(text) => format!("the text `{text}`"),
            Self::Number(number) => format!("the number {number}"),
            Self::Sign(sign) => format!("`{sign}`"),
        }
    }
}

/// Longer ones first.
const SIGNS: [&str; 16] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "(", ")", "[", "]", ",", ".", "-",
];

const UNITS: [(&str, i128); 11] = [
    ("", 1),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

fn error(column: usize, problem: impl Into<String>) -> RuleError {
    RuleError {
        column,
        problem: problem.into(),
        unknown: None,
    }
}

/// Tokens with their columns.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, RuleError> {
    let all: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = all.get(at).copied() {
        let column = at + 1;
        let rest = all.get(at..).unwrap_or_default();
        let run = |from: usize, belongs: fn(&char) -> bool| -> String {
            rest.iter().skip(from).take_while(|c| belongs(c)).collect()
        };
        if first.is_whitespace() {
            at += 1;
        } else if first == '\'' || first == '"' {
            let inside: String = rest.iter().skip(1).take_while(|c| **c != first).collect();
            let length = inside.chars().count();
            if rest.get(length + 1) != Some(&first) {
                return Err(error(column, "this text is not closed"));
            }
            found.push((column, Token::Text(inside.to_lowercase())));
            at += length + 2;
        } else if first.is_ascii_digit() {
            let digits = run(0, char::is_ascii_digit);
            if rest.get(digits.len()) == Some(&'.') {
                return Err(error(
                    column + digits.len(),
                    "a fraction is not read; write it in a smaller unit, as 1536Mi for 1.5Gi",
                ));
            }
            let unit = run(digits.len(), char::is_ascii_alphanumeric);
            let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(error(
                    column + digits.len(),
                    format!("`{unit}` is no unit; write Ki, Mi, Gi, Ti, Pi, k, M, G, T, P or none"),
                ));
            };
            let number = digits.parse::<i128>().ok().and_then(|n| n.checked_mul(*factor));
            // No amount of anything comes near.
            let number = number.filter(|number| *number <= 1 << 100);
            let number = number.ok_or_else(|| error(column, format!("`{digits}{unit}` is too large")))?;
            found.push((column, Token::Number(number)));
            at += digits.len() + unit.len();
        } else if first.is_ascii_alphabetic() || first == '_' {
            let word = run(0, |c| c.is_ascii_alphanumeric() || *c == '_');
            at += word.len();
            found.push((column, Token::Word(word)));
        } else {
            let begins = |sign: &&&str| sign.chars().eq(rest.iter().take(sign.len()).copied());
            let Some(sign) = SIGNS.iter().find(begins) else {
                return Err(error(column, format!("`{first}` has no meaning here")));
            };
            found.push((column, Token::Sign(sign)));
            at += sign.len();
        }
    }
    Ok(found)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    end: usize,
}

pub(super) fn rule(text: &str) -> Result<Node, RuleError> {
    if text.len() > RULE_BYTES_MAX {
        return Err(error(
            1,
            format!("the rule has {} bytes, and {RULE_BYTES_MAX} are the most", text.len()),
        ));
    }
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        end: text.chars().count() + 1,
    };
    let node = parser.any(0)?;
    match parser.peek() {
        None => Ok(node),
        Some(token) => Err(parser.expected("`&&`, `||` or the end", &token.shown())),
    }
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn column(&self) -> usize {
        self.tokens.get(self.at).map_or(self.end, |(column, _)| *column)
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(found)) if *found == sign);
        self.at += usize::from(found);
        found
    }

    fn expected(&self, what: &str, found: &str) -> RuleError {
        error(self.column(), format!("{what} is expected, not {found}"))
    }

    fn wants(&mut self, sign: &str) -> Result<(), RuleError> {
        if self.takes(sign) {
            return Ok(());
        }
        let found = self.peek().map_or_else(|| "the end".to_owned(), Token::shown);
        Err(self.expected(&format!("`{sign}`"), &found))
    }

    fn any(&mut self, depth: usize) -> Result<Node, RuleError> {
        let mut parts = vec![self.all(depth)?];
        while self.takes("||") {
            parts.push(self.all(depth)?);
        }
        Ok(Node::Any(parts))
    }

    fn all(&mut self, depth: usize) -> Result<Node, RuleError> {
        let mut parts = vec![self.one(depth)?];
        while self.takes("&&") {
            parts.push(self.one(depth)?);
        }
        Ok(Node::All(parts))
    }

    fn one(&mut self, depth: usize) -> Result<Node, RuleError> {
        if depth >= RULE_DEPTH_MAX {
            return Err(error(
                self.column(),
                format!("more than {RULE_DEPTH_MAX} parentheses and negations inside each other"),
            ));
        }
        if self.takes("!") {
            return Ok(Node::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.takes("(") {
            let inside = self.any(depth + 1)?;
            self.wants(")")?;
            return Ok(inside);
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Node, RuleError> {
        let left = self.value()?;
        let column = self.column();
        if self.takes(".") {
            return self.method(left, column);
        }
        if self.peek() == Some(&Token::Word("in".to_owned())) {
            self.at += 1;
            return self.list(left);
        }
        let relation = match self.peek() {
            Some(Token::Sign("==")) => Relation::Equal,
            Some(Token::Sign("!=")) => Relation::NotEqual,
            Some(Token::Sign("<")) => Relation::Less,
            Some(Token::Sign("<=")) => Relation::LessOrEqual,
            Some(Token::Sign(">")) => Relation::Greater,
            Some(Token::Sign(">=")) => Relation::GreaterOrEqual,
            other => {
                let found = other.map_or_else(|| "the end".to_owned(), Token::shown);
                return Err(self.expected("a comparison (==, !=, <, <=, >, >=, in, .contains(..))", &found));
            }
        };
        self.at += 1;
        let column = self.column();
        let right = self.value()?;
        same_kind(&left, &right, column)?;
        Ok(Node::Compare(left, relation, right))
    }

    fn list(&mut self, left: Value) -> Result<Node, RuleError> {
        self.wants("[")?;
        let mut list = Vec::new();
        loop {
            let column = self.column();
            let value = self.value()?;
            same_kind(&left, &value, column)?;
            list.push(value);
            if !self.takes(",") {
                break;
            }
        }
        self.wants("]")?;
        Ok(Node::In(left, list))
    }

    fn method(&mut self, left: Value, column: usize) -> Result<Node, RuleError> {
        let method = match self.peek() {
            Some(Token::Word(word)) if word == "contains" => Method::Contains,
            Some(Token::Word(word)) if word == "startsWith" => Method::StartsWith,
            Some(Token::Word(word)) if word == "endsWith" => Method::EndsWith,
            other => {
                let found = other.map_or_else(|| "the end".to_owned(), Token::shown);
                return Err(self.expected("contains, startsWith or endsWith", &found));
            }
        };
        if !left.is_text() {
            return Err(error(
                column,
                "what stands before it is a number, and only a text can contain a text",
            ));
        }
        self.at += 1;
        self.wants("(")?;
        let column = self.column();
        let part = self.value()?;
        same_kind(&left, &part, column)?;
        self.wants(")")?;
        Ok(Node::Text(left, method, part))
    }

    fn value(&mut self) -> Result<Value, RuleError> {
        let column = self.column();
        let negative = self.takes("-");
        let token = self.peek().cloned();
        let word = match (token, negative) {
            (Some(Token::Number(number)), _) => {
                self.at += 1;
                return Ok(Value::Number(if negative { -number } else { number }));
            }
            (Some(Token::Text(text)), false) => {
                self.at += 1;
                return Ok(Value::Text(text));
            }
            (Some(Token::Word(word)), false) => word,
            (other, _) => {
                let found = other.map_or_else(|| "the end".to_owned(), |token| token.shown());
                let what = if negative {
                    "a number"
                } else {
                    "an attribute, a text or a number"
                };
                return Err(self.expected(what, &found));
            }
        };
        self.at += 1;
        Ok(match word.as_str() {
            "vendor" => Value::TextOf(TextAttribute::Vendor),
            "model" => Value::TextOf(TextAttribute::Model),
            "id" => Value::TextOf(TextAttribute::Id),
            "mode" => Value::TextOf(TextAttribute::Mode),
            "memory" => Value::NumberOf(NumberAttribute::Memory),
            "cores" => Value::NumberOf(NumberAttribute::Cores),
            "slots" => Value::NumberOf(NumberAttribute::Slots),
            "index" => Value::NumberOf(NumberAttribute::Index),
            "numa" => Value::NumberOf(NumberAttribute::Numa),
            "links" => Value::NumberOf(NumberAttribute::Links),
            "custom" => {
                self.wants("[")?;
                let Some(Token::Text(name)) = self.peek().cloned() else {
                    return Err(error(
                        self.column(),
                        "a name in quotes is expected, as in custom[\"driver\"]",
                    ));
                };
                self.at += 1;
                self.wants("]")?;
                Value::TextOf(TextAttribute::Custom(name))
            }
            _ => {
                return Err(RuleError {
                    column,
                    problem: format!(
                        "`{word}` is no attribute of a card; there are {}",
                        CardRule::ATTRIBUTES.join(", ")
                    ),
                    unknown: Some(word),
                });
            }
        })
    }
}

fn same_kind(left: &Value, right: &Value, column: usize) -> Result<(), RuleError> {
    match (left.is_text(), right.is_text()) {
        (true, false) => Err(error(
            column,
            "a text is compared with a number; write the text in quotes",
        )),
        (false, true) => Err(error(
            column,
            "a number is compared with a text; write the number without quotes",
        )),
        _ => Ok(()),
    }
}
