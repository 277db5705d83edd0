//! Literals are data of the application's users: a statement is shown without them.

/// Longest statement that is shown.
const SHOWN: usize = 240;

/// One line, every string and number of it replaced by `?`.
pub fn cut(statement: &str) -> String {
    let mut out = String::new();
    let mut chars = statement.chars().peekable();
    let mut length = 0;
    while let Some(c) = chars.next() {
        if length >= SHOWN {
            out.push('…');
            break;
        }
        let before = out.chars().next_back();
        let in_word =
            before.is_some_and(|b| b.is_alphanumeric() || matches!(b, '_' | '$' | '"' | '.' | ':' | '%'));
        match c {
            '\'' => {
                // A doubled quote goes on; so does one behind a backslash, where that is an escape.
                while let Some(next) = chars.next() {
                    match next {
                        '\\' => _ = chars.next(),
                        '\'' if chars.peek() == Some(&'\'') => _ = chars.next(),
                        '\'' => break,
                        _ => {}
                    }
                }
                out.push('?');
            }
            '-' if chars.peek() == Some(&'-') => {
                // A comment may say anything.
                while chars.next_if(|next| *next != '\n').is_some() {}
                continue;
            }
            '/' if chars.peek() == Some(&'*') => {
                let mut last = ' ';
                for next in chars.by_ref().skip(1) {
                    if (last, next) == ('*', '/') {
                        break;
                    }
                    last = next;
                }
                continue;
            }
            c if c.is_ascii_digit() && !in_word => {
                let of_number = |n: &char| n.is_ascii_alphanumeric() || matches!(n, '.' | '_');
                while chars.next_if(of_number).is_some() {}
                out.push('?');
            }
            c if c.is_whitespace() => {
                if before.is_none_or(|b| b != ' ') && !out.is_empty() {
                    out.push(' ');
                }
            }
            c => out.push(c),
        }
        length += 1;
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_are_cut() {
        assert_eq!(
            cut("SELECT *\n  FROM users2 u WHERE name = 'O''Neil' AND age > 42.5 -- him\n AND id = %(id_1)s"),
            "SELECT * FROM users2 u WHERE name = ? AND age > ? AND id = %(id_1)s"
        );
        assert_eq!(
            cut(r"insert into t values ('a\'b', -3, 0x1f, $1, :p2) /* 's' */"),
            "insert into t values (?, -?, ?, $1, :p2)"
        );
        assert_eq!(cut("select 'open"), "select ?");
        assert!(cut(&"x ".repeat(1000)).chars().count() <= SHOWN + 1);
    }

    proptest! {
        #[test]
        fn no_statement_panics(text in ".*", secret in "[a-z]{8,20}") {
            cut(&text);
            let quoted = format!("select '{secret}' from t");
            prop_assert!(!cut(&quoted).contains(&secret));
        }
    }
}
