"""What the tripwire policy notices, and what attackers who know it achieve: ``smart-eval --policy tripwire``."""
