//! Objects read once, page by page: for programs that look and do nothing.

use serde_json::Value;

use crate::Client;
use crate::api::{ApiError, chain};

/// Objects of one page.
const PAGE: usize = 500;

/// Gives every object of a kind to `take`, page by page. `path` is the kind's path, such as `/api/v1/nodes`.
///
/// # Errors
/// The API server cannot be asked or refuses.
pub async fn each(client: &Client, path: &str, mut take: impl FnMut(&Value)) -> Result<(), ApiError> {
    let mut next = String::new();
    loop {
        let page = get(client, &format!("{path}?limit={PAGE}{next}")).await?;
        page.get("items")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .for_each(&mut take);
        match page.pointer("/metadata/continue").and_then(Value::as_str) {
            Some(token) if !token.is_empty() => next = format!("&continue={}", escaped(token)),
            _ => return Ok(()),
        }
    }
}

/// One object, by its path.
///
/// # Errors
/// The API server cannot be asked or refuses.
pub async fn get(client: &Client, path: &str) -> Result<Value, ApiError> {
    let doing = || format!("reading {}", path.split('?').next().unwrap_or(path));
    let request = http::Request::get(path)
        .body(Vec::new())
        .map_err(|error| ApiError::refused(doing(), chain(&error)))?;
    client
        .request(request)
        .await
        .map_err(|error| ApiError::new(doing(), &error))
}

/// For a query: what is neither letter nor digit as `%XX`.
fn escaped(token: &str) -> String {
    let escape = |byte: u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    token.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::{Value, json};

    use crate::script::{self, Reply};

    #[tokio::test]
    async fn pages_are_followed_to_the_last() {
        let asked = AtomicUsize::new(0);
        let (client, _) = script::client(move |_| {
            let page = asked.fetch_add(1, Ordering::Relaxed);
            let token = if page < 2 { "more" } else { "" };
            Reply::Object(json!({"metadata": {"continue": token}, "items": [{"at": page}]}))
        });
        let mut found = Vec::new();
        super::each(&client, "/api/v1/nodes", |object| {
            found.push(object.get("at").and_then(Value::as_u64));
        })
        .await
        .unwrap();
        assert_eq!(found, [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn a_token_keeps_its_meaning_in_a_query() {
        assert_eq!(super::escaped("aZ9=+/"), "aZ9%3D%2B%2F");
    }
}
