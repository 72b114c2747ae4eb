//! Runs PTX on the CPU, with every access checked.
