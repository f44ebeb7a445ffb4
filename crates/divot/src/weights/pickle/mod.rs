//! Reads Python's pickle format without Python: a stack machine that builds numbers, strings, tuples, lists
//! and dictionaries, and the tensors of PyTorch.
//!
//! Nothing is ever called. Every other object, of any class, becomes [`Value::Other`], which keeps only its
//! name. The machine reads its input once, as a stream. The memory that it keeps is limited by
//! [`MAX_KEPT`], whatever counts and lengths the input states.

mod value;

use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use super::callable::{display_name, runs_code};
use value::{Global, Tuple, rebuilt};

pub(super) use value::{Pickle, Storage, TensorInfo, Value};

/// Maximum length of a pickle in bytes. Pickles of checkpoints have a few hundred bytes for each tensor.
pub(super) const MAX_LENGTH: u64 = 256 << 20;
/// Maximum memory of the objects of one pickle in bytes, without their strings.
const MAX_KEPT: usize = 512 << 20;
/// Maximum length of a string that is kept, in bytes. Longer strings are skipped.
const MAX_STRING: u64 = 1 << 16;
/// Maximum length of a list that is kept. The contents of longer lists are skipped.
const MAX_LIST: usize = 1 << 20;
/// Maximum nesting of tuples, because Rust's drop is recursive.
const MAX_DEPTH: usize = 100;
/// Approximate size of one object: its place on the stack, in a dictionary or in the memo.
const COST: usize = 64;

/// Why a pickle was not read.
#[derive(Debug)]
pub(super) enum PickleError {
    /// It names a function that runs code.
    RunsCode(String),
    /// It could not be read, or is damaged.
    Io(io::Error),
}

impl From<io::Error> for PickleError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads one pickle, up to its end.
pub(super) fn read(reader: &mut impl BufRead) -> Result<Pickle, PickleError> {
    let mut machine = Machine {
        input: reader.take(MAX_LENGTH),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        kept: 0,
        pickle: Pickle {
            root: Value::None,
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: HashMap::new(),
        },
    };
    while machine.step()? {}
    machine.pickle.root = machine.pop()?;
    Ok(machine.pickle)
}

struct Machine<R> {
    input: R,
    stack: Vec<Value>,
    /// Lengths of the stack at which groups start.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    kept: usize,
    pickle: Pickle,
}

fn broken(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

impl<R: BufRead> Machine<R> {
    /// Runs one opcode. Returns false at the end.
    fn step(&mut self) -> Result<bool, PickleError> {
        let opcode = self.bytes::<1>()?[0];
        let value = match opcode {
            b'.' => return Ok(false),
            // PROTO and FRAME.
            0x80 => return self.skip(1).map(|()| true),
            0x95 => return self.skip(8).map(|()| true),
            b'(' => {
                self.keep(1)?;
                self.marks.push(self.stack.len());
                return Ok(true);
            }
            // POP removes a mark if that is on top. POP_MARK removes a group.
            b'0' => {
                match self.marks.last() {
                    Some(&mark) if mark == self.stack.len() => drop(self.marks.pop()),
                    _ => drop(self.pop()?),
                }
                return Ok(true);
            }
            b'1' => {
                self.group()?;
                return Ok(true);
            }
            b'2' => self.top()?.clone(),

            b'N' => Value::None,
            0x88 => Value::Bool,
            0x89 => Value::Bool,
            b'I' => match self.line()?.as_str() {
                "00" => Value::Bool,
                "01" => Value::Bool,
                text => number(text),
            },
            b'L' => number(self.line()?.trim_end_matches('L')),
            b'K' => Value::Int(self.unsigned::<1>()? as i64),
            b'M' => Value::Int(self.unsigned::<2>()? as i64),
            b'J' => Value::Int(i32::from_le_bytes(self.bytes()?).into()),
            0x8a => self.long::<1>()?,
            0x8b => self.long::<4>()?,
            b'F' => {
                self.line()?;
                other("float")
            }
            b'G' => {
                self.skip(8)?;
                other("float")
            }

            b'S' => Value::Str(self.line()?.trim_matches(['\'', '"']).into()),
            b'V' => Value::Str(self.line()?.into()),
            b'U' | 0x8c => self.text::<1>()?,
            b'T' | b'X' => self.text::<4>()?,
            0x8d => self.text::<8>()?,
            b'C' => self.skip_bytes::<1>()?,
            b'B' => self.skip_bytes::<4>()?,
            0x8e | 0x96 => self.skip_bytes::<8>()?,
            // NEXT_BUFFER. READONLY_BUFFER leaves the stack as it is.
            0x97 => other("buffer"),
            0x98 => return Ok(true),

            b')' => self.tuple(Vec::new())?,
            b't' => {
                let items = self.group()?;
                self.tuple(items)?
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.start_of(count)?;
                let items = self.stack.split_off(start);
                self.tuple(items)?
            }
            b']' => self.list(Vec::new())?,
            b'l' => {
                let items = self.group()?;
                self.list(items)?
            }
            b'}' => self.dict()?,
            b'd' => {
                let items = self.group()?;
                let dict = self.dict()?;
                self.set_items(&dict, items)?;
                dict
            }
            // Sets and frozen sets contain no tensors.
            0x8f => other("set"),
            0x91 => {
                self.group()?;
                other("frozenset")
            }
            0x90 => {
                self.group()?;
                return Ok(true);
            }
            // APPEND, APPENDS, SETITEM, SETITEMS.
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
                return Ok(true);
            }
            b'e' => {
                let items = self.group()?;
                self.append(items)?;
                return Ok(true);
            }
            b's' | b'u' => {
                let items = match opcode {
                    b's' => {
                        let start = self.start_of(2)?;
                        self.stack.split_off(start)
                    }
                    _ => self.group()?,
                };
                let target = self.top()?.clone();
                self.set_items(&target, items)?;
                return Ok(true);
            }

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return Err(PickleError::RunsCode(
                        "a function whose name is hidden".to_owned(),
                    ));
                };
                self.global(module.to_string(), name.to_string())?
            }
            // Codes from the extension registry of the writing program.
            0x82 => {
                self.skip(1)?;
                other("extension")
            }
            0x83 => {
                self.skip(2)?;
                other("extension")
            }
            0x84 => {
                self.skip(4)?;
                other("extension")
            }
            // REDUCE and NEWOBJ call or create the object before their arguments.
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(&callee, &arguments)?
            }
            0x92 => {
                let (_, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(&callee, &arguments)?
            }
            // INST contains the name of its class. For OBJ, the class is the first of its group.
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let callee = self.global(module, name)?;
                let items = self.group()?;
                let arguments = self.tuple(items)?;
                self.call(&callee, &arguments)?
            }
            b'o' => {
                let mut items = self.group()?;
                if items.is_empty() {
                    return Err(broken("an object without a class").into());
                }
                let callee = items.remove(0);
                let arguments = self.tuple(items)?;
                self.call(&callee, &arguments)?
            }
            // BUILD sets the state of an object, which is not kept.
            b'b' => {
                self.pop()?;
                self.top()?;
                return Ok(true);
            }
            b'P' => {
                self.line()?;
                other("persistent object")
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(&id)
            }

            b'p' | b'q' | b'r' | 0x94 => {
                let key = match opcode {
                    b'p' => parse(&self.line()?)?,
                    b'q' => self.unsigned::<1>()? as u32,
                    b'r' => self.unsigned::<4>()? as u32,
                    _ => self.memo.len() as u32,
                };
                self.keep(1)?;
                let value = self.top()?.clone();
                self.memo.insert(key, value);
                return Ok(true);
            }
            b'g' | b'h' | b'j' => {
                let key = match opcode {
                    b'g' => parse(&self.line()?)?,
                    b'h' => self.unsigned::<1>()? as u32,
                    _ => self.unsigned::<4>()? as u32,
                };
                let value = self.memo.get(&key).cloned();
                value.ok_or_else(|| broken(format!("memo {key} is empty")))?
            }
            _ => return Err(broken(format!("0x{opcode:02x} is no pickle opcode")).into()),
        };
        if self.kept + (self.stack.len() + self.marks.len()) * size_of::<Value>() > MAX_KEPT {
            return Err(broken("it holds too many objects").into());
        }
        self.stack.push(value);
        Ok(true)
    }

    /// Counts objects that are kept. Returns an error for too many.
    fn keep(&mut self, objects: usize) -> io::Result<()> {
        self.kept = self.kept.saturating_add(objects.saturating_mul(COST));
        match self.kept > MAX_KEPT {
            true => Err(broken("it holds too many objects")),
            false => Ok(()),
        }
    }

    fn pop(&mut self) -> io::Result<Value> {
        let start = self.start_of(1)?;
        self.stack.truncate(start + 1);
        self.stack.pop().ok_or_else(|| broken("its stack is empty"))
    }

    fn top(&self) -> io::Result<&Value> {
        self.start_of(1)?;
        self.stack
            .last()
            .ok_or_else(|| broken("its stack is empty"))
    }

    /// Returns where the last `count` values start. They must be in the current group.
    fn start_of(&self, count: usize) -> io::Result<usize> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        self.stack
            .len()
            .checked_sub(count)
            .filter(|&start| start >= bottom)
            .ok_or_else(|| broken("its stack is empty"))
    }

    /// Removes and returns the values since the last mark.
    fn group(&mut self) -> io::Result<Vec<Value>> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| broken("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, items: Vec<Value>) -> io::Result<Value> {
        if items.len() > MAX_LIST {
            return Ok(other("tuple"));
        }
        self.keep(1 + items.len())?;
        let depths = items.iter().map(|item| match item {
            Value::Tuple(tuple) => tuple.depth,
            _ => 0,
        });
        let depth = 1 + depths.max().unwrap_or(0);
        Ok(match depth > MAX_DEPTH {
            true => other("tuple"),
            false => Value::Tuple(Rc::new(Tuple { items, depth })),
        })
    }

    fn list(&mut self, mut items: Vec<Value>) -> io::Result<Value> {
        items.truncate(MAX_LIST);
        self.keep(1 + items.len())?;
        self.pickle.lists.push(items);
        Ok(Value::List(self.pickle.lists.len() - 1))
    }

    fn dict(&mut self) -> io::Result<Value> {
        self.keep(1)?;
        self.pickle.dicts.push(Vec::new());
        Ok(Value::Dict(self.pickle.dicts.len() - 1))
    }

    fn append(&mut self, items: Vec<Value>) -> io::Result<()> {
        if let &Value::List(list) = self.top()? {
            let room = MAX_LIST.saturating_sub(self.pickle.lists[list].len());
            let kept = room.min(items.len());
            self.keep(kept)?;
            self.pickle.lists[list].extend(items.into_iter().take(kept));
        }
        Ok(())
    }

    fn set_items(&mut self, target: &Value, items: Vec<Value>) -> io::Result<()> {
        if let Value::Dict(dict) = *target {
            self.keep(items.len())?;
            let mut items = items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                self.pickle.dicts[dict].push((key, value));
            }
        }
        Ok(())
    }

    fn global(&mut self, module: String, name: String) -> Result<Value, PickleError> {
        if runs_code(&module, &name) {
            return Err(PickleError::RunsCode(display_name(&module, &name)));
        }
        Ok(Value::Global(Rc::new(Global { module, name })))
    }

    /// Returns the result of a call if it is known without making the call.
    fn call(&mut self, callee: &Value, arguments: &Value) -> io::Result<Value> {
        let Value::Global(global) = callee else {
            return Ok(other("result of a call"));
        };
        let Value::Tuple(tuple) = arguments else {
            return Ok(Value::Other(global.full_name().into()));
        };
        let found = match (
            global.module.as_str(),
            global.name.as_str(),
            &tuple.items[..],
        ) {
            ("torch._utils", name, items) => rebuilt(name, items),
            // A tensor with attributes, or of a subclass.
            ("torch._tensor", "_rebuild_from_type_v2", [Value::Global(inner), _, args, ..]) => {
                match args {
                    Value::Tuple(args) if inner.module == "torch._utils" => {
                        rebuilt(&inner.name, &args.items)
                    }
                    _ => None,
                }
            }
            ("collections", "OrderedDict" | "Counter" | "defaultdict", items)
            | ("builtins" | "__builtin__", "dict", items) => {
                let dict = self.dict()?;
                match items.last() {
                    // A dictionary, or pairs as pickled by Python 2.
                    Some(&Value::Dict(from)) => {
                        let entries = self.pickle.dicts[from].clone();
                        self.keep(2 * entries.len())?;
                        if let Value::Dict(to) = dict {
                            self.pickle.dicts[to] = entries;
                        }
                    }
                    Some(&Value::List(pairs)) => {
                        let mut items = Vec::new();
                        for pair in &self.pickle.lists[pairs] {
                            match pair {
                                Value::List(pair) => items.extend_from_slice(
                                    self.pickle.lists[*pair].get(..2).unwrap_or(&[]),
                                ),
                                Value::Tuple(pair) => {
                                    items.extend_from_slice(pair.items.get(..2).unwrap_or(&[]));
                                }
                                _ => {}
                            }
                        }
                        self.set_items(&dict, items)?;
                    }
                    _ => {}
                }
                Some(dict)
            }
            _ => None,
        };
        Ok(found.unwrap_or_else(|| Value::Other(global.full_name().into())))
    }

    /// Returns the storage of a persistent id: `("storage", class, key, location, elements)`.
    fn storage(&mut self, id: &Value) -> Value {
        let unknown = other("persistent object");
        let Value::Tuple(id) = id else {
            return unknown;
        };
        let [
            _,
            Value::Global(class),
            key,
            _,
            Value::Int(elements),
            view @ ..,
        ] = &id.items[..]
        else {
            return unknown;
        };
        let key: Rc<str> = match key {
            Value::Str(key) => key.clone(),
            Value::Int(key) => key.to_string().into(),
            _ => return unknown,
        };
        // In PyTorch before 0.4, a storage could be a part of another.
        let start = match view {
            [Value::Tuple(view)] => match view.items[..] {
                [_, Value::Int(start), _] => start,
                _ => 0,
            },
            _ => 0,
        };
        let (Ok(elements), Ok(start)) = ((*elements).try_into(), start.try_into()) else {
            return unknown;
        };
        let storage = Rc::new(Storage {
            key: key.clone(),
            class: class.name.clone(),
            start,
            elements,
        });
        self.pickle.storages.insert(key, storage.clone());
        Value::Storage(storage)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn unsigned<const N: usize>(&mut self) -> io::Result<u64> {
        let mut number = [0; 8];
        number[..N].copy_from_slice(&self.bytes::<N>()?);
        Ok(u64::from_le_bytes(number))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.input).take(MAX_STRING);
        limited.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn skip(&mut self, count: u64) -> Result<(), PickleError> {
        if io::copy(&mut (&mut self.input).take(count), &mut io::sink())? < count {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Reads a string after its length.
    fn text<const N: usize>(&mut self) -> Result<Value, PickleError> {
        let length = self.unsigned::<N>()?;
        if length > MAX_STRING {
            self.skip(length)?;
            return Ok(other("long string"));
        }
        let mut text = vec![0; length as usize];
        self.input.read_exact(&mut text)?;
        Ok(Value::Str(String::from_utf8_lossy(&text).into()))
    }

    fn skip_bytes<const N: usize>(&mut self) -> Result<Value, PickleError> {
        let length = self.unsigned::<N>()?;
        self.skip(length)?;
        Ok(other("bytes"))
    }

    /// Reads an integer of any length, in two's complement.
    fn long<const N: usize>(&mut self) -> Result<Value, PickleError> {
        let length = self.unsigned::<N>()?;
        if length > 8 {
            self.skip(length)?;
            return Ok(other("long integer"));
        }
        let mut bytes = [0; 8];
        let (number, rest) = bytes.split_at_mut(length as usize);
        self.input.read_exact(number)?;
        if number.last().is_some_and(|byte| byte & 0x80 != 0) {
            rest.fill(0xff);
        }
        Ok(Value::Int(i64::from_le_bytes(bytes)))
    }
}

fn other(name: &str) -> Value {
    Value::Other(name.into())
}

fn number(text: &str) -> Value {
    match text.trim().parse() {
        Ok(number) => Value::Int(number),
        Err(_) => other("long integer"),
    }
}

fn parse(text: &str) -> io::Result<u32> {
    text.parse()
        .map_err(|_| broken("a memo's number is not a number"))
}

#[cfg(test)]
mod tests;
