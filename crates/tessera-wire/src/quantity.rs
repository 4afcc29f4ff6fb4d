//! Kubernetes quantities, as far as counting devices needs them: is it a whole number, and which.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The longest text taken for a quantity. Kubernetes writes at most about forty characters.
pub(crate) const QUANTITY_CHARS_MAX: usize = 64;

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a quantity: {problem}")]
pub struct QuantityError {
    text: String,
    problem: &'static str,
}

/// What a quantity is as a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// Exactly this number.
    Exact(i64),
    /// It has a fractional part, like `1500m`.
    Fraction,
    /// It does not fit 64 bits.
    TooLarge,
}

/// A Kubernetes quantity, kept as it was written. Comparing compares the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Quantity(Box<str>);

/// A number as `mantissa * 10^ten * 2^two`.
struct Parts {
    negative: bool,
    mantissa: u128,
    ten: i32,
    two: u32,
}

fn split(text: &str) -> Result<Parts, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > QUANTITY_CHARS_MAX {
        return Err("it is too long");
    }
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..).unwrap_or_default()),
        Some(b'+') => (false, text.get(1..).unwrap_or_default()),
        _ => (false, text),
    };
    let digits_end = rest
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err("a number is expected first");
    }
    let fraction = fraction.trim_end_matches('0');
    let mut mantissa: u128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        mantissa = mantissa
            .checked_mul(10)
            .and_then(|m| m.checked_add(u128::from(digit.wrapping_sub(b'0'))))
            .ok_or("the number has too many digits")?;
    }
    let (ten, two) = match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E']).ok_or("the unit is unknown")?;
            let power: i32 = digits.parse().map_err(|_| "the exponent is not a number")?;
            if power.abs() > 100 {
                return Err("the exponent is too large");
            }
            (power, 0)
        }
    };
    let decimals = i32::try_from(fraction.len()).map_err(|_| "it is too long")?;
    Ok(Parts {
        negative,
        mantissa,
        ten: ten - decimals,
        two,
    })
}

impl Quantity {
    /// Takes a text that Kubernetes would take.
    ///
    /// # Errors
    /// The text is empty, too long, has no number or an unknown unit.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        match split(text) {
            Ok(_) => Ok(Self(Box::from(text))),
            Err(problem) => Err(QuantityError {
                text: text.chars().take(QUANTITY_CHARS_MAX).collect(),
                problem,
            }),
        }
    }

    /// The quantity of a whole number.
    #[must_use]
    pub fn of(number: i64) -> Self {
        Self(number.to_string().into_boxed_str())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it is as a whole number. `1k` is 1000, `3Gi` is 3221225472, `1500m` is a fraction.
    #[must_use]
    pub fn whole(&self) -> Whole {
        let Ok(mut parts) = split(&self.0) else {
            return Whole::Fraction;
        };
        if parts.mantissa == 0 {
            return Whole::Exact(0);
        }
        // A binary unit can turn decimals into a whole number (0.5Ki), so it is applied before the decimals.
        for _ in 0..parts.two {
            match parts.mantissa.checked_mul(2) {
                Some(doubled) => parts.mantissa = doubled,
                None => return Whole::TooLarge,
            }
        }
        while parts.ten < 0 {
            if !parts.mantissa.is_multiple_of(10) {
                return Whole::Fraction;
            }
            parts.mantissa /= 10;
            parts.ten += 1;
        }
        while parts.ten > 0 {
            match parts.mantissa.checked_mul(10) {
                Some(larger) => parts.mantissa = larger,
                None => return Whole::TooLarge,
            }
            parts.ten -= 1;
        }
        match i64::try_from(parts.mantissa) {
            Ok(number) if parts.negative => Whole::Exact(-number),
            Ok(number) => Whole::Exact(number),
            Err(_) => Whole::TooLarge,
        }
    }

    /// The whole number it stands for, if it is one and fits.
    #[must_use]
    pub fn as_integer(&self) -> Option<i64> {
        match self.whole() {
            Whole::Exact(number) => Some(number),
            Whole::Fraction | Whole::TooLarge => None,
        }
    }

    /// In thousandths, rounded up; `None` if it is negative or does not fit. `500m` is 500, `2` is 2000.
    #[must_use]
    pub fn as_milli(&self) -> Option<u32> {
        let mut parts = split(&self.0)
            .ok()
            .filter(|parts| !parts.negative || parts.mantissa == 0)?;
        parts.mantissa = parts.mantissa.checked_mul(1_u128.checked_shl(parts.two)?)?;
        parts.ten += 3;
        while parts.ten > 0 && parts.mantissa > 0 {
            parts.mantissa = parts.mantissa.checked_mul(10)?;
            parts.ten -= 1;
        }
        while parts.ten < 0 && parts.mantissa > 1 {
            parts.mantissa = parts.mantissa.div_ceil(10);
            parts.ten += 1;
        }
        u32::try_from(parts.mantissa).ok()
    }

    /// Whether it is a whole number.
    #[must_use]
    pub fn is_integer(&self) -> bool {
        self.as_integer().is_some()
    }

    /// Whether it starts with a minus and is not zero.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.0.starts_with('-') && !matches!(self.whole(), Whole::Exact(0))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        Quantity::parse(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_numbers_are_exact() {
        for (text, expected) in [
            ("1", Whole::Exact(1)),
            ("0", Whole::Exact(0)),
            ("-3", Whole::Exact(-3)),
            ("1k", Whole::Exact(1000)),
            ("3Gi", Whole::Exact(3_221_225_472)),
            ("1500m", Whole::Fraction),
            ("2000m", Whole::Exact(2)),
            ("0.5", Whole::Fraction),
            ("0.5Ki", Whole::Exact(512)),
            ("1.0", Whole::Exact(1)),
            ("1e3", Whole::Exact(1000)),
            ("1E3", Whole::Exact(1000)),
            ("1E", Whole::Exact(1_000_000_000_000_000_000)),
            ("10E", Whole::TooLarge),
            ("9223372036854775808", Whole::TooLarge),
            ("1n", Whole::Fraction),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().whole(), expected, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "abc",
            "1 Gi",
            "Gi",
            ".",
            "1.2.3",
            "1gi",
            "1e",
            "1e999",
            "--1",
            &"9".repeat(80),
        ] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_in_json_are_taken_too() {
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap(), Quantity::of(2));
        assert_eq!(serde_json::to_string(&Quantity::of(2)).unwrap(), "\"2\"");
    }

    proptest! {
        #[test]
        fn an_integer_survives(number: i64) {
            prop_assume!(number != i64::MIN);
            prop_assert_eq!(Quantity::of(number).as_integer(), Some(number));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                prop_assert_eq!(quantity.is_integer(), matches!(quantity.whole(), Whole::Exact(_)));
                prop_assert_eq!(quantity.as_str(), text);
            }
        }
    }

    #[test]
    fn thousandths_are_rounded_up() {
        let milli = |text: &str| Quantity::parse(text).unwrap().as_milli();
        assert_eq!(milli("500m"), Some(500));
        assert_eq!(milli("2"), Some(2000));
        assert_eq!(milli("0.1"), Some(100));
        assert_eq!(milli("1u"), Some(1));
        assert_eq!(milli("1k"), Some(1_000_000));
        assert_eq!(milli("1Ki"), Some(1_024_000));
        assert_eq!(milli("0"), Some(0));
        assert_eq!(milli("-1"), None);
        assert_eq!(milli("1E"), None);
    }
}
