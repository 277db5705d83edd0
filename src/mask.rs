//! Secrets: which names look like one, and how text that carries credentials is shown.
//!
//! Applied to locals, command lines, source lines, titles of peers, statements and work items alike, unless
//! `--show-secrets` was given.

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// Parts of names; compared without case, `_` and `-`.
const SECRET_NAMES: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "token",
    "secret",
    "authorization",
    "cookie",
    "apikey",
    "accesskey",
    "privatekey",
    "credential",
    "dsn",
    "sessionid",
];

/// Whether a variable, attribute, key or option of this name is taken for a secret.
pub fn is_secret(name: &str) -> bool {
    let plain: String =
        name.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).flat_map(char::to_lowercase).collect();
    SECRET_NAMES.iter().any(|s| plain.contains(s))
}

/// Masks what is secret inside running text: credentials and query strings of URLs, and the values in
/// `password=…`, `token: …` and the like.
pub fn text(input: &str) -> String {
    let urls = mask_urls(input);
    mask_pairs(&urls, false)
}

/// Masks a line of source code: what is written there as a literal, be it within another one.
pub fn source(line: &str) -> String {
    mask_pairs(&mask_urls(line), true)
}

/// Masks a command line: also the argument that follows `--token`.
pub fn command(args: &[String]) -> Vec<String> {
    let mut out = Vec::with_capacity(args.len());
    let mut next_is_secret = false;
    for arg in args {
        if std::mem::take(&mut next_is_secret) && !arg.starts_with('-') {
            out.push(MASK.to_owned());
            continue;
        }
        next_is_secret = arg.starts_with('-') && !arg.contains('=') && !arg.contains(' ') && is_secret(arg);
        out.push(text(arg));
    }
    out
}

/// `scheme://user:pass@host/path?query` → `scheme://***@host/path?***`.
fn mask_urls(input: &str) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let is_end =
            |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '>' | '<' | ')' | ']' | '}' | ',');
        let end = tail.find(is_end).unwrap_or(tail.len());
        let (url, after) = tail.split_at(end);
        let authority_end = url.find(['/', '?', '#']).unwrap_or(url.len());
        // A password may hold a slash or a question mark: the last `@` before a space decides.
        let (authority_end, user_end) = match url.rfind('@') {
            Some(i) if url[..i].contains(':') || i < authority_end => {
                (url[i..].find(['/', '?', '#']).map_or(url.len(), |n| i + n), Some(i))
            }
            _ => (authority_end, None),
        };
        if let Some(i) = user_end {
            out.push_str(MASK);
            out.push_str(&url[i..authority_end]);
        } else {
            out.push_str(&url[..authority_end]);
        }
        let path = &url[authority_end..];
        match path.find('?') {
            Some(q) => {
                out.push_str(&path[..=q]);
                out.push_str(MASK);
            }
            None => out.push_str(path),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `name=value` and `name: value`, where the name is secret: the value, to the next separator. In `code`, only where it
/// is a literal, and with blanks around the sign.
fn mask_pairs(input: &str, code: bool) -> String {
    let mut out = String::with_capacity(input.len());
    let mut word_start = 0;
    let mut skip_until = 0;
    let mut quoted = "";
    let mut literal: Option<char> = None;
    for (i, c) in input.char_indices() {
        if i < skip_until {
            continue;
        }
        if matches!(c, '"' | '\'') {
            literal = match literal {
                None => Some(c),
                Some(open) if open == c => None,
                open => open,
            };
        }
        if !(c.is_alphanumeric() || matches!(c, '_' | '-')) {
            let mut name = &input[word_start..i];
            if name.is_empty() && input[..i].ends_with(['"', '\'']) {
                // The name stands in quotes: 'token': …
                name = quoted;
            }
            if code && name.is_empty() && c == '=' && input[..i].ends_with(' ') {
                name = quoted;
            }
            // Of `name = `, the blank in between is no name.
            quoted = if code && c == ' ' && name.is_empty() { quoted } else { name };
            word_start = i + c.len_utf8();
            if matches!(c, '=' | ':') && is_secret(name) {
                let value = &input[word_start..];
                let blank = value.len() - value.trim_start().len();
                let quote = value[blank..].chars().next().filter(|q| matches!(q, '"' | '\''));
                let body = blank + quote.map_or(0, char::len_utf8);
                let end = match quote {
                    None if code && literal.is_none() => Some(0),
                    Some(q) => value[body..].find(q),
                    None => value[body..]
                        .find(|c: char| c.is_whitespace() || matches!(c, '&' | ';' | ',' | '"' | '\'')),
                };
                let end = end.map_or(value.len(), |n| body + n);
                if end > body {
                    out.push(c);
                    out.push_str(&value[..body]);
                    out.push_str(MASK);
                    skip_until = word_start + end;
                    word_start = skip_until;
                    continue;
                }
            }
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for name in
            ["password", "DB_PASSWORD", "x-api-key", "auth_token", "Authorization", "pg_dsn", "set_cookie"]
        {
            assert!(is_secret(name), "{name}");
        }
        for name in ["user", "path", "key", "author", "pass_count"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn urls_and_pairs() {
        assert_eq!(text("postgresql://me:s3c@db:5432/app?sslpassword=x"), "postgresql://***@db:5432/app?***");
        assert_eq!(text("redis://:p/w@h/0 and http://h/p"), "redis://***@h/0 and http://h/p");
        assert_eq!(text("host=db password=geheim user=me"), "host=db password=*** user=me");
        assert_eq!(text("{'token': 'a b c', 'n': 1}"), "{'token': '***', 'n': 1}");
        assert_eq!(text("{\"api_key\": \"k\", \"n\": 1}"), "{\"api_key\": \"***\", \"n\": 1}");
        assert_eq!(text("Authorization: Bearer"), "Authorization: ***");
    }

    #[test]
    fn source_lines() {
        let masked = "requests.post(url, data='grant=x&client_secret=***', auth=auth)";
        assert_eq!(source("requests.post(url, data='grant=x&client_secret=hunter2', auth=auth)"), masked);
        assert_eq!(source("connect(host, password=\"geheim\")"), "connect(host, password=\"***\")");
        assert_eq!(source("PASSWORD = 'geheim'"), "PASSWORD = '***'");
        assert_eq!(source("{'token': 'abc', 'n': n}"), "{'token': '***', 'n': n}");
        for line in ["token = self.fetch_token(name)", "login(user, password=password)", "if token == other:"]
        {
            assert_eq!(source(line), line);
        }
    }

    #[test]
    fn command_lines() {
        let args =
            ["app", "--token", "abc", "--db-password=x", "--verbose", "--secret", "-q"].map(String::from);
        assert_eq!(command(&args).join(" "), "app --token *** --db-password=*** --verbose --secret -q");
    }

    proptest! {
        #[test]
        fn any_text_survives(input in ".*") {
            text(&input);
            source(&input);
        }
    }
}
