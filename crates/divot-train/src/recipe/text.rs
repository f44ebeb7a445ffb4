//! Recipes as text: dotted keys, and the lines that they stand in.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Puts `key=value` into a table.
pub(super) fn change_table(table: &mut toml::Table, change: &str) -> Result<(), String> {
    let (key, value) = change
        .split_once('=')
        .ok_or("is no `key=value`; give a dotted key and a value")?;
    let value = value.trim();
    // What is no value of TOML is text.
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| value.into());
    let names = names(key)?;
    let mut whole = toml::Value::Table(std::mem::take(table));
    let done = put(&mut whole, "the recipe", &names, value);
    if let toml::Value::Table(changed) = whole {
        *table = changed;
    }
    done
}

/// Puts a value where a path of keys leads in `place`, which is called `name`. Tables that are missing are made.
fn put(
    place: &mut toml::Value,
    name: &str,
    path: &[String],
    value: toml::Value,
) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        *place = value;
        return Ok(());
    };
    let inner = match place {
        toml::Value::Table(table) => table
            .entry(key.clone())
            .or_insert_with(|| toml::Table::new().into()),
        // Items of a list have their numbers as keys.
        toml::Value::Array(items) => {
            let count = items.len();
            let item = key.parse::<usize>().ok();
            item.and_then(|number| items.get_mut(number))
                .ok_or_else(|| {
                    format!("`{name}` is a list of {count}; name one of them by its number from 0")
                })?
        }
        _ => return Err(format!("`{name}` has no keys below it")),
    };
    put(inner, key, rest, value)
}

/// The names of a dotted key, which may be in quotes.
fn names(key: &str) -> Result<Vec<String>, String> {
    let table = toml::from_str::<toml::Table>(&format!("{key} = 0"));
    let mut value = toml::Value::Table(table.map_err(|_| "the key is no key of TOML".to_owned())?);
    let mut names = Vec::new();
    while let toml::Value::Table(table) = value {
        let (name, inner) = table.into_iter().next().ok_or("has no key")?;
        names.push(name);
        value = inner;
    }
    Ok(names)
}

/// The line of a byte, from 1.
pub(super) fn line(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|&&byte| byte == b'\n').count()
}

/// Where the value of a dotted key begins, or the nearest table that it would be in.
pub(super) fn offset_of(text: &str, key: &str) -> usize {
    let Ok(table) = DeTable::parse(text) else {
        return 0;
    };
    let Some((mut value, mut rest)) = within(table.get_ref(), key) else {
        return 0;
    };
    while let Some(key) = rest {
        let inner = match value.get_ref() {
            DeValue::Table(table) => within(table, key),
            DeValue::Array(items) => item(items, key),
            _ => None,
        };
        let Some(inner) = inner else { break };
        (value, rest) = inner;
    }
    value.span().start
}

/// A value, and the rest of the key that led to it.
type Found<'a, 'text> = (&'a Spanned<DeValue<'text>>, Option<&'a str>);

/// The value with the longest name that a dotted key begins with. A name in quotes may have dots.
fn within<'a, 'text>(table: &'a DeTable<'text>, key: &'a str) -> Option<Found<'a, 'text>> {
    let found = table.iter().filter_map(|(name, value)| {
        let rest = key.strip_prefix(name.get_ref().as_ref())?;
        match rest.strip_prefix('.') {
            None if !rest.is_empty() => None,
            rest => Some((value, rest)),
        }
    });
    found.min_by_key(|(_, rest)| rest.map_or(0, str::len))
}

/// The item whose number a dotted key begins with.
fn item<'a, 'text>(items: &'a [Spanned<DeValue<'text>>], key: &'a str) -> Option<Found<'a, 'text>> {
    let (number, rest) = match key.split_once('.') {
        Some((number, rest)) => (number, Some(rest)),
        None => (key, None),
    };
    let value = items.get(number.parse::<usize>().ok()?)?;
    Some((value, rest))
}

/// Every value of a text in TOML, by its dotted key.
pub(super) fn values(text: &str) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    flatten(&toml::Value::Table(table), String::new(), &mut flat);
    flat
}

fn flatten(value: &toml::Value, key: String, flat: &mut BTreeMap<String, String>) {
    let below = |name: &str| match key.is_empty() {
        true => name.to_owned(),
        false => format!("{key}.{name}"),
    };
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                flatten(value, below(name), flat);
            }
        }
        toml::Value::Array(values) if values.iter().any(toml::Value::is_table) => {
            for (index, value) in values.iter().enumerate() {
                flatten(value, below(&index.to_string()), flat);
            }
        }
        value => {
            flat.insert(key, value.to_string());
        }
    }
}
