"""What a hospital's processor does: optimiser steps on its own cases, and how good the outcome."""
