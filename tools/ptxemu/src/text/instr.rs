//! Operands: registers, immediates, addresses, vectors, names.

use super::ast::{Base, Class, Operand};
use super::lex::Kind;
use super::parse::Parser;
use super::scope::{Named, Scopes};
use crate::fault::ParseError;

/// The bits of a number word: decimal, hexadecimal, octal, binary, `0f`/`0d` float bits, or a decimal
/// fraction (as f64 bits).
pub(super) fn number(word: &str) -> Option<u64> {
    if !word.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let radix = |digits: &str, radix| u64::from_str_radix(digits.trim_end_matches(['U', 'u']), radix).ok();
    match word.get(..2) {
        Some("0f" | "0F" | "0d" | "0D" | "0x" | "0X") => radix(&word[2..], 16),
        Some("0b" | "0B") => radix(&word[2..], 2),
        _ if word.contains('.') => word.parse::<f64>().ok().map(f64::to_bits),
        _ if word.len() > 1 && word.starts_with('0') => radix(&word[1..], 8),
        _ => radix(word, 10),
    }
}

fn immediate(word: &str, minus: bool) -> Option<Operand> {
    let bits = number(word)?;
    let sign = u64::from(minus);
    Some(match word.get(..2) {
        Some("0f" | "0F") => Operand::F32(bits as u32 ^ (sign as u32) << 31),
        Some("0d" | "0D") => Operand::F64(bits ^ sign << 63),
        _ if word.contains('.') => Operand::F64(bits ^ sign << 63),
        _ if minus => Operand::Int(bits.wrapping_neg()),
        _ => Operand::Int(bits),
    })
}

/// `+n`, `-n`, `+-n` or nothing.
pub(super) fn signed(p: &mut Parser) -> Result<i64, ParseError> {
    let plus = p.accept('+');
    if plus || p.peek().is('-') { Ok(p.int()? as i64) } else { Ok(0) }
}

/// One operand.
pub(super) fn operand(p: &mut Parser, scopes: &mut Scopes) -> Result<Operand, ParseError> {
    let token = p.next();
    match token.kind {
        Kind::Punct('{') => list(p, scopes, '}').map(Operand::Vector),
        Kind::Punct('(') => list(p, scopes, ')').map(Operand::List),
        Kind::Punct('[') => address(p, scopes),
        Kind::Punct('!') => {
            let name = p.word("a predicate")?;
            match scopes.lookup(name.text) {
                Some(Named::Reg(reg)) if scopes.func.regs[reg as usize] == Class::Pred => {
                    Ok(Operand::Not(reg))
                }
                _ => Err(name.error("expected a predicate register")),
            }
        }
        Kind::Punct('-') => {
            let word = p.word("a number")?;
            immediate(word.text, true).ok_or_else(|| word.error("expected a number"))
        }
        Kind::Word => {
            let first = name_or_number(p, scopes, token.text, token)?;
            if p.accept('|') {
                let second = p.word("a register")?;
                let second = name_or_number(p, scopes, second.text, second)?;
                return Ok(Operand::Pair(Box::new(first), Box::new(second)));
            }
            Ok(first)
        }
        _ => Err(token.error("expected an operand")),
    }
}

fn name_or_number(
    p: &mut Parser,
    scopes: &mut Scopes,
    text: &str,
    token: super::lex::Token,
) -> Result<Operand, ParseError> {
    if text == "_" {
        return Ok(Operand::Sink);
    }
    if let Some(value) = immediate(text, false) {
        return Ok(value);
    }
    match scopes.lookup(text) {
        Some(Named::Reg(reg)) => Ok(Operand::Reg(reg)),
        None if text == "WARP_SZ" => Ok(Operand::Int(32)),
        None if text.starts_with('%') => Ok(Operand::Special(text[1..].to_owned())),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => Err(token.error("not a number")),
        _ => {
            let symbol = scopes.symbol(text);
            Ok(Operand::Symbol(symbol, signed(p)?))
        }
    }
}

fn list(p: &mut Parser, scopes: &mut Scopes, close: char) -> Result<Vec<Operand>, ParseError> {
    let mut items = Vec::new();
    while !p.accept(close) {
        items.push(operand(p, scopes)?);
        if !p.accept(',') {
            p.expect(close)?;
            break;
        }
    }
    Ok(items)
}

fn address(p: &mut Parser, scopes: &mut Scopes) -> Result<Operand, ParseError> {
    let token = p.word("an address")?;
    let base = if let Some(value) = number(token.text) {
        p.expect(']')?;
        return Ok(Operand::Address(Base::Absolute, value as i64));
    } else {
        match scopes.lookup(token.text) {
            Some(Named::Reg(reg)) => Base::Reg(reg),
            _ => Base::Symbol(scopes.symbol(token.text)),
        }
    };
    let offset = signed(p)?;
    p.expect(']')?;
    Ok(Operand::Address(base, offset))
}
