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
    let mut names = names(key)?;
    let last = names.pop().unwrap_or_default();
    let mut place = table;
    let mut names = names.into_iter();
    while let Some(name) = names.next() {
        let inner = place
            .entry(name.clone())
            .or_insert_with(|| toml::Table::new().into());
        place = match inner {
            toml::Value::Table(inner) => inner,
            // Items of a list have their numbers as keys.
            toml::Value::Array(items) => {
                let count = items.len();
                let number = names.next().and_then(|number| number.parse::<usize>().ok());
                let item = number.and_then(|number| items.get_mut(number));
                item.and_then(toml::Value::as_table_mut).ok_or_else(|| {
                    format!("`{name}` is a list of {count}; name one of them by its number from 0")
                })?
            }
            _ => return Err(format!("`{name}` has no keys below it")),
        };
    }
    place.insert(last, value);
    Ok(())
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
    let mut names = key.split('.');
    let found = names.next().and_then(|name| within(table.get_ref(), name));
    let Some(mut value) = found else { return 0 };
    for name in names {
        let inner = match value.get_ref() {
            DeValue::Table(table) => within(table, name),
            DeValue::Array(items) => name.parse().ok().and_then(|index: usize| items.get(index)),
            _ => None,
        };
        let Some(inner) = inner else { break };
        value = inner;
    }
    value.span().start
}

fn within<'a, 'text>(table: &'a DeTable<'text>, name: &str) -> Option<&'a Spanned<DeValue<'text>>> {
    let mut entries = table.iter();
    let found = entries.find(|(found, _)| found.get_ref() == name);
    found.map(|(_, value)| value)
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
